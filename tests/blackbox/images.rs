//! Images on their way out and in again, by other people's tools too; and what the store says of itself.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::node::{DEMO, Node, Registry, archive_of, fail, layer_of, provision, succeed, text};

/// What scripts/images/busybox calls itself.
const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn id_of(node: &Node, name: &str) -> String {
    let inspected = json(&succeed(&mut node.cricket(["image", "inspect", name])));
    inspected["id"].as_str().expect("an id").to_owned()
}

fn diff_ids_of(node: &Node, name: &str) -> Value {
    let inspected = json(&succeed(&mut node.cricket(["image", "inspect", name])));
    inspected["info"]["imageSpec"]["rootfs"]["diff_ids"].clone()
}

fn remove(node: &Node, name: &str) {
    succeed(&mut node.cricket(["image", "remove", name]));
}

fn load(node: &Node, file: &Path) -> Value {
    let output = succeed(node.cricket(["image", "load", "--output", "json"]).arg(file));
    json(&output)
}

fn skopeo(arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new("skopeo");
    // The machine's own policy is none of ours, and a fresh user has none.
    succeed(command.arg("--insecure-policy").args(arguments))
}

#[tokio::test]
async fn skopeo_reads_what_we_save_and_we_load_what_it_writes() {
    let node = Node::start().await;
    let loaded = load(&node, &provision("images/busybox.tar"));
    let id = loaded[0]["id"].as_str().expect("an id").to_owned();
    let file = |name: &str| node.dir.join(name);
    for (format, compress, theirs) in [
        ("oci", "none", "oci-archive"),
        ("docker", "none", "docker-archive"),
        ("oci", "gzip", "oci-archive"),
        ("docker", "zstd", "docker-archive"),
    ] {
        let saved = file(&format!("{format}-{compress}"));
        let mut save = node.cricket(["image", "save", "--format", format, "--compress", compress, BUSYBOX, "-f"]);
        succeed(save.arg(&saved));
        let source = format!("{theirs}:{}", saved.display());
        let config = skopeo(&["inspect", "--config", "--raw", &source]).stdout;
        let diff_ids = &serde_json::from_slice::<Value>(&config).expect("a config")["rootfs"]["diff_ids"];
        assert_eq!(diff_ids.as_array().map(Vec::len), Some(1), "{format} {compress}");
        for (kind, name) in [("oci-archive", "oci"), ("docker-archive", "docker")] {
            let theirs = file(&format!("skopeo-{name}-{format}-{compress}"));
            let target = format!("{kind}:{}:copied.test/busybox:2", theirs.display());
            skopeo(&["copy", "--quiet", &source, &target]);
            remove(&node, BUSYBOX);
            let loaded = load(&node, &theirs);
            // Between the two formats skopeo writes the config anew, and with it the id; never the layers.
            if format == name {
                assert_eq!(loaded[0]["id"], id.as_str(), "{format} {compress} -> {kind}: the same image");
            }
            assert_eq!(&diff_ids_of(&node, "copied.test/busybox:2"), diff_ids, "{format} {compress} -> {kind}");
            assert_eq!(loaded[0]["layers"]["fetched"], 1);
            remove(&node, "copied.test/busybox:2");
            load(&node, &saved);
        }
    }
    assert_eq!(id_of(&node, BUSYBOX), id);
    node.stop_and_account().await;
}

#[tokio::test]
async fn several_images_are_saved_through_a_pipe_and_a_failure_leaves_no_file() {
    let node = Node::start().await;
    node.load_demo().await;
    load(&node, &provision("images/busybox.tar"));
    let piped = succeed(&mut node.cricket(["image", "save", DEMO, BUSYBOX, DEMO]));
    let archive = node.dir.join("both.tar");
    std::fs::write(&archive, &piped.stdout).expect("a file of ours");
    let ids = [id_of(&node, DEMO), id_of(&node, BUSYBOX)];
    remove(&node, DEMO);
    remove(&node, BUSYBOX);
    load(&node, &archive);
    assert_eq!([id_of(&node, DEMO), id_of(&node, BUSYBOX)], ids);
    let target = node.dir.join("none.tar");
    let (_, said) = fail(node.cricket(["image", "save", DEMO, "nobody.test/none:1", "-f"]).arg(&target));
    assert!(said.contains("nobody.test/none:1"), "{said}");
    let left = std::fs::read_dir(&node.dir)
        .expect("ours")
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("none.tar"));
    assert_eq!(left.count(), 0);
    node.stop_and_account().await;
}

#[tokio::test]
async fn programs_are_told_what_a_pull_a_load_and_a_removal_did() {
    let node = Node::prepare().await;
    let registry = Registry::start(&node).await;
    let name = registry.push("busybox", "told/busybox:1");
    let node = node.begin().await;
    let pull = ["image", "pull", "--output", "json", &name];
    let first = json(&succeed(&mut node.cricket(pull)));
    assert_eq!((&first["layers"]["fetched"], &first["names"][0]), (&1.into(), &name.as_str().into()));
    assert!(first["layers"]["fetched_bytes"].as_u64() > Some(0) && first["size_bytes"].as_u64() > Some(0));
    let listed = json(&succeed(&mut node.cricket(["image", "list", "--output", "json"])));
    assert_eq!((&listed[0]["id"], listed[0]["used_by"].as_array().map(Vec::len)), (&first["id"], Some(0)));
    let told = text(&succeed(&mut node.cricket(["image", "pull", &name])).stderr);
    assert!(told.contains("nothing was fetched"), "{told}");
    assert_eq!(text(&succeed(&mut node.cricket(["image", "pull", "--quiet", &name])).stderr), "");
    let removed = json(&succeed(&mut node.cricket(["image", "remove", "--output", "json", &name])));
    assert_eq!(removed[0]["id"], first["id"]);
    let (_, said) = fail(&mut node.cricket(["image", "pull", "127.0.0.1:1/none:1"]));
    assert!(said.contains("RegistryUnavailable") && said.contains("try again"), "{said}");
    node.stop_and_account().await;
}

#[tokio::test]
async fn people_are_told_in_the_words_of_the_command_line() {
    let node = Node::start().await;
    for verb in ["pull", "remove", "save", "inspect", "verify"] {
        let (_, said) = fail(&mut node.cricket(["image", verb, ""]));
        assert!(said.to_lowercase().contains("<image") || said.contains("[IMAGE"), "{verb}: {said}");
    }
    let (_, said) = fail(&mut node.cricket(["image", "load", "/etc/passwd"]));
    assert!(said.contains("/etc/passwd") && said.contains("archive"), "{said}");
    // The same image under two names: both are shown, and both go.
    let archive = node.dir.join("named.tar");
    for name in ["one.test/a:1", "two.test/b:2"] {
        std::fs::write(&archive, archive_of(name, &[layer_of("one", 1, 1000)])).expect("a file of ours");
        load(&node, &archive);
    }
    let listed = text(&succeed(&mut node.cricket(["image", "list"])).stdout);
    assert!(listed.contains("one.test/a:1 ") && listed.contains("two.test/b:2 "), "{listed}");
    let removed = text(&succeed(&mut node.cricket(["image", "remove", "two.test/b:2"])).stdout);
    assert!(removed.contains("one.test/a:1"), "{removed}");
    let help = text(&succeed(&mut node.cricket(["image", "remove", "--help"])).stdout);
    assert!(help.contains("all of its names"), "{help}");
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_login_is_used_where_no_credentials_are_typed() {
    let node = Node::prepare().await;
    let registry = Registry::start_private(&node).await;
    let name = registry.push("busybox", "private/busybox:1");
    let node = node.begin().await;
    let (_, said) = fail(node.cricket(["image", "pull", &name]).env("HOME", &node.dir));
    assert!(said.contains("refuses"), "{said}");
    let config = node.dir.join(".docker/config.json");
    std::fs::create_dir_all(config.parent().expect("a directory")).expect("ours");
    // user:secret
    let login = format!(r#"{{"auths": {{"{}": {{"auth": "dXNlcjpzZWNyZXQ="}}}}}}"#, registry.address);
    std::fs::write(config, login).expect("a file of ours");
    let mut pull = node.cricket(["image", "pull", &name]);
    succeed(pull.env("HOME", &node.dir).env_remove("XDG_CONFIG_HOME").env_remove("DOCKER_CONFIG"));
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_damaged_layer_is_named_and_pulled_again() {
    let node = Node::prepare().await;
    let registry = Registry::start(&node).await;
    let archive = node.dir.join("two.tar");
    let layers = [layer_of("one", 1, 100_000), layer_of("two", 2, 200_000)];
    std::fs::write(&archive, archive_of("two.test/two:1", &layers)).expect("a file of ours");
    let name = registry.push_archive(&archive, "told/two:1");
    let node = node.begin().await;
    succeed(&mut node.cricket(["image", "pull", &name]));
    let whole = json(&succeed(&mut node.cricket(["image", "verify", "--output", "json"])));
    assert_eq!(whole["images"][0]["verdict"], "whole");
    // In the node the files are root's.
    let root = node.root();
    let script =
        r#"for file in "$0"/images/layers/*/tree/two; do printf x | dd of="$file" conv=notrunc 2>/dev/null; done"#;
    succeed(node.cricket(["enter", "--", "sh", "-c", script]).arg(&root));
    let (_, said) = fail(&mut node.cricket(["image", "verify"]));
    assert!(said.contains(&name) && said.contains("image pull"), "{said}");
    let again = json(&succeed(&mut node.cricket(["image", "pull", "--output", "json", &name])));
    assert_eq!((&again["layers"]["fetched"], &again["layers"]["reused"]), (&1.into(), &1.into()));
    succeed(&mut node.cricket(["image", "verify", &name]));
    let pruned = json(&succeed(&mut node.cricket(["image", "prune", "--all", "--output", "json"])));
    assert_eq!(pruned["removed"][0]["id"], again["id"]);
    assert!(pruned["freed_bytes"].as_u64() > Some(300_000), "{pruned}");
    node.stop_and_account().await;
}
