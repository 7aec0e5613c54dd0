//! Images that are wrong: an exit status, a message that names the thing, nothing left behind, nothing written outside.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::node::{Node, succeed, text};

/// A file that no image may touch; the layers below try.
const TARGET: &str = "outside";

/// Makes an OCI archive with one layer. `tamper` may change its blobs by digest before they are packed.
fn archive(layer: &[u8], tamper: impl Fn(&str, &mut Vec<u8>)) -> Vec<u8> {
    let (layer_hex, layer_size) = (hex(layer), layer.len());
    let oci = "application/vnd.oci.image";
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{layer_hex}"]}}}}"#,
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{oci}.manifest.v1+json","config":{{"mediaType":"{oci}.config.v1+json","digest":"sha256:{}","size":{}}},"layers":[{{"mediaType":"{oci}.layer.v1.tar","digest":"sha256:{layer_hex}","size":{layer_size}}}]}}"#,
        hex(config.as_bytes()),
        config.len(),
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{oci}.manifest.v1+json","digest":"sha256:{}","size":{},"annotations":{{"io.containerd.image.name":"bad.local/image:1"}}}}]}}"#,
        hex(manifest.as_bytes()),
        manifest.len(),
    );
    let mut tar = Builder::new(Vec::new());
    let mut add = |path: &str, mut bytes: Vec<u8>| {
        tamper(path, &mut bytes);
        file(&mut tar, path, &bytes);
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    add("index.json", index.into_bytes());
    for bytes in [manifest.into_bytes(), config.into_bytes(), layer.to_vec()] {
        add(&format!("blobs/sha256/{}", hex(&bytes)), bytes);
    }
    tar.into_inner().expect("in memory")
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header(kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

fn file(tar: &mut Builder<Vec<u8>>, path: &str, bytes: &[u8]) {
    raw(tar, EntryType::Regular, path, "", bytes);
}

/// An entry with names as they are given, also those that the tar crate would refuse to write.
fn raw(tar: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, link: &str, bytes: &[u8]) {
    let mut header = header(kind, bytes.len());
    let ustar = header.as_ustar_mut().expect("made as one");
    ustar.name[..path.len()].copy_from_slice(path.as_bytes());
    ustar.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    tar.append(&header, bytes).expect("in memory");
}

fn layer(entries: &[(EntryType, &str, &str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, path, link, bytes) in entries {
        raw(&mut tar, *kind, path, link, bytes);
    }
    tar.into_inner().expect("in memory")
}

/// Loads it through standard input; answers whether it was taken, and what was said.
fn load(node: &Node, archive: &[u8]) -> (bool, String) {
    let mut command: Command = node.cricket(["image", "load"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("scripts/test builds cricket");
    // It may well stop reading before the end.
    let _ = child.stdin.take().expect("piped").write_all(archive);
    let output = child.wait_with_output().expect("our child");
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// Everything below the node's disk directory.
fn on_disk(node: &Node) -> BTreeSet<String> {
    let output = node.cricket(["enter", "--", "find"]).arg(node.root()).output().expect("find");
    text(&output.stdout).lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn damaged_archives_are_refused_and_leave_nothing() {
    let node = Node::start().await;
    let good_layer = layer(&[(EntryType::Regular, "file", "", &[7; 100_000])]);
    let good = archive(&good_layer, |_, _| {});
    let layer_blob = format!("blobs/sha256/{}", hex(&good_layer));
    // What is made once and kept is made by a good one.
    let (taken, said) = load(&node, &good);
    assert!(taken, "the good one is taken: {said}");
    succeed(&mut node.cricket(["image", "remove", "bad.local/image:1"]));
    let before = on_disk(&node);
    for (what, bytes) in [
        ("nothing at all", Vec::new()),
        ("no archive", b"this is no archive, however one looks at it".repeat(100)),
        ("cut short", good[..good.len() / 2].to_vec()),
        (
            "wrong digest",
            archive(&good_layer, |path, bytes| {
                if path == layer_blob {
                    bytes[60_000] ^= 1;
                }
            }),
        ),
        (
            "an index that is no JSON",
            archive(&good_layer, |path, bytes| {
                if path == "index.json" {
                    bytes.truncate(20);
                }
            }),
        ),
        (
            "a layer that is missing",
            archive(&good_layer, |path, bytes| {
                if path == "index.json" {
                    let missing = String::from_utf8_lossy(bytes).replace("sha256:", "sha256:0");
                    *bytes = missing.into_bytes();
                }
            }),
        ),
    ] {
        let (taken, said) = load(&node, &bytes);
        assert!(!taken, "{what}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{what}: an error is one line: {said}");
        assert_eq!(on_disk(&node), before, "{what}: left behind");
    }
    node.stop_and_account().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_told_once_and_named() {
    let node = Node::start().await;
    let output = node.cricket(["image", "load"]).arg(&node.dir).output().expect("our client");
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.lines().count() == 1, "{said}");
    assert!(said.contains(&node.dir.display().to_string()) && said.contains("is a directory"), "{said}");
    // A process' memory opens, and gives no byte.
    let output = node.cricket(["image", "load", "/proc/self/mem"]).output().expect("our client");
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.lines().count() == 1 && said.contains("/proc/self/mem"), "{said}");
    node.stop_and_account().await;
}

#[tokio::test]
async fn layers_that_reach_outside_write_nothing_there() {
    let node = Node::start().await;
    let outside = node.dir.join(TARGET);
    std::fs::create_dir(&outside).expect("a directory of ours");
    std::fs::write(outside.join("secret"), "untouched").expect("a file of ours");
    let outside = outside.display().to_string();
    let up = format!("../../../../../../../../../..{outside}/planted");
    let absolute = format!("{outside}/planted");
    let secret = format!("{outside}/secret");
    use EntryType::{Directory, Link, Regular, Symlink};
    for (what, entries) in [
        ("a path with ..", vec![(Regular, up.as_str(), "", &b"x"[..])]),
        ("an absolute path", vec![(Regular, absolute.as_str(), "", b"x")]),
        (
            "a link to a directory outside, then a file in it",
            vec![(Symlink, "door", outside.as_str(), b""), (Regular, "door/planted", "", b"x")],
        ),
        (
            "a link to a file outside, then that file",
            vec![(Symlink, "door", secret.as_str(), b""), (Regular, "door", "", b"x")],
        ),
        ("a hard link to the outside", vec![(Link, "mine", secret.as_str(), b""), (Regular, "mine", "", b"x")]),
        ("a hard link with ..", vec![(Link, "mine", "../../../../../../../../etc/passwd", b"")]),
        ("a directory over a link", vec![(Symlink, "door", outside.as_str(), b""), (Directory, "door", "", b"")]),
        ("a whiteout that leaves the layer", vec![(Regular, "../.wh.secret", "", b"")]),
    ] {
        let (taken, said) = load(&node, &archive(&layer(&entries), |_, _| {}));
        let names: Vec<_> =
            std::fs::read_dir(&outside).expect("ours").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["secret"], "{what} (taken: {taken}): {said}");
        assert_eq!(std::fs::read_to_string(&secret).expect("ours"), "untouched", "{what}");
    }
    node.stop_and_account().await;
}
