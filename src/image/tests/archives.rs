//! `load`: archives as the common tools write them, and broken ones.

use std::collections::BTreeMap;
use std::io::Cursor;

use serde_json::json;

use super::support::*;
use crate::image::{ImageError, ImageErrorKind};

type Files = BTreeMap<String, Vec<u8>>;

fn archive(files: &Files) -> Vec<u8> {
    let mut layer = Layer::new();
    for (name, data) in files {
        layer = layer.pax(&[("path", name.as_bytes())]).raw(b'0', b"x", b"", data, |_| ());
    }
    layer.tar()
}

fn docker(layers: &[Vec<u8>], tags: &[&str]) -> Files {
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let config = config(layers);
    let config_name = format!("{}.json", sha256(&config).hex());
    let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    let mut files: Files = names.into_iter().zip(layers.iter().cloned()).collect();
    files.insert(config_name, config);
    files.insert("manifest.json".into(), manifest.to_string().into());
    files
}

fn blob(files: &mut Files, bytes: Vec<u8>, media_type: &str) -> serde_json::Value {
    let digest = sha256(&bytes);
    let size = bytes.len();
    files.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}

fn oci(layers: &[Vec<u8>], annotations: &[(&str, &str)]) -> Files {
    let mut files = Files::new();
    let layer_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let descriptors: Vec<_> = layers.iter().map(|tar| blob(&mut files, gzip(tar), layer_type)).collect();
    let config = blob(&mut files, config(layers), "application/vnd.oci.image.config.v1+json");
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": descriptors});
    let mut entry = blob(&mut files, manifest.to_string().into(), manifest_type);
    entry["annotations"] = annotations.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    files.insert("index.json".into(), json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into());
    files.insert("oci-layout".into(), b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec());
    files
}

async fn load(scratch: &Scratch, bytes: Vec<u8>) -> Result<Vec<std::sync::Arc<crate::image::Image>>, ImageError> {
    scratch.images().await.load(Box::new(Cursor::new(bytes)), None).await
}

fn layers() -> [Vec<u8>; 2] {
    [Layer::new().dir("a").file("a/f", "1").tar(), Layer::new().file("a/.wh.f", "").tar()]
}

#[tokio::test]
async fn docker_and_oci_archives_are_loaded_with_their_names() {
    if !in_node("archives::docker_and_oci_archives_are_loaded_with_their_names") {
        return;
    }
    let named = ("org.opencontainers.image.ref.name", "reg.io/x:2");
    let full = ("io.containerd.image.name", "docker.io/library/y:3");
    let tag = ("org.opencontainers.image.ref.name", "3");
    let cases = [
        (
            "docker",
            archive(&docker(&layers(), &["busybox", "reg.io/b:1"])),
            vec!["docker.io/library/busybox:latest", "reg.io/b:1"],
        ),
        ("docker-gzip", gzip(&archive(&docker(&layers(), &["b:1"]))), vec!["docker.io/library/b:1"]),
        ("oci", archive(&oci(&layers(), &[named])), vec!["reg.io/x:2"]),
        ("oci-containerd", archive(&oci(&layers(), &[full, tag])), vec!["docker.io/library/y:3"]),
        ("oci-tag", archive(&oci(&layers(), &[tag])), vec![]),
        ("oci-zstd", zstd::encode_all(&archive(&oci(&layers(), &[named]))[..], 1).expect("zstd"), vec!["reg.io/x:2"]),
    ];
    for (name, bytes, tags) in cases {
        let scratch = Scratch::new(&format!("load-{name}"));
        let loaded = load(&scratch, bytes).await.expect(name);
        assert_eq!(loaded.len(), 1, "{name}");
        assert_eq!(loaded[0].repo_tags, tags, "{name}");
        assert_eq!(loaded[0].id, sha256(&config(&layers())).to_string(), "{name}");
        assert!(loaded[0].size_bytes > 0);
        assert!(scratch.leftovers().is_empty());
        assert_eq!(scratch.images().await.list().len(), 1);
    }
}

#[tokio::test]
async fn several_images_share_layers_and_links_are_followed() {
    if !in_node("archives::several_images_share_layers_and_links_are_followed") {
        return;
    }
    let [one, two] = layers();
    let (both, only) = (config(&[one.clone(), two.clone()]), config(std::slice::from_ref(&one)));
    let manifest = json!([
        {"Config": "both.json", "RepoTags": ["both:1"], "Layers": ["1/layer.tar", "2/layer.tar"]},
        {"Config": "only.json", "RepoTags": null, "Layers": ["3/layer.tar"]},
    ]);
    let bytes = Layer::new()
        .raw(b'0', b"both.json", b"", &both, |_| ())
        .raw(b'0', b"only.json", b"", &only, |_| ())
        .symlink("3/layer.tar", "../1/layer.tar")
        .raw(b'0', b"1/layer.tar", b"", &gzip(&one), |_| ())
        .raw(b'0', b"2/layer.tar", b"", &two, |_| ())
        .raw(b'0', b"manifest.json", b"", manifest.to_string().as_bytes(), |_| ())
        .tar();
    let scratch = Scratch::new("several");
    let loaded = load(&scratch, bytes).await.expect("loaded");
    assert_eq!(loaded.iter().map(|i| i.layers.len()).collect::<Vec<_>>(), [2, 1]);
}

#[tokio::test]
async fn a_damaged_layer_is_refused_also_where_a_good_one_is_here() {
    if !in_node("archives::a_damaged_layer_is_refused_also_where_a_good_one_is_here") {
        return;
    }
    let scratch = Scratch::new("damaged-known");
    load(&scratch, archive(&docker(&layers(), &["a:1"]))).await.expect("the good one");
    for mut files in [docker(&layers(), &["b:1"]), oci(&layers(), &[])] {
        let is_layer = |name: &String| *name == "0/layer.tar" || name.ends_with(sha256(&gzip(&layers()[0])).hex());
        let name = files.keys().find(|name| is_layer(name)).expect("a layer").clone();
        let bytes = files.get_mut(&name).expect("there");
        let at = bytes.len() / 3;
        bytes[at] ^= 1;
        let error = load(&scratch, archive(&files)).await.expect_err(&name);
        assert_eq!(error.kind, ImageErrorKind::BadImage, "{error}");
    }
    assert_eq!(scratch.images().await.list().len(), 1, "what was there stays");
}

#[tokio::test]
async fn broken_archives_name_what_is_wrong_and_leave_nothing() {
    if !in_node("archives::broken_archives_name_what_is_wrong_and_leave_nothing") {
        return;
    }
    let good = archive(&oci(&layers(), &[]));
    let change = |mut files: Files, find: &dyn Fn(&str) -> bool, to: Option<&[u8]>| {
        let name = files.keys().find(|name| find(name)).expect("such a file").clone();
        match to {
            Some(bytes) => drop(files.insert(name, bytes.to_vec())),
            None => drop(files.remove(&name)),
        }
        archive(&files)
    };
    let layer_name = |n: usize| format!("blobs/sha256/{}", sha256(&gzip(&layers()[n])).hex());
    let is_second = |name: &str| name == layer_name(1);
    let cases = [
        ("cut", good[..good.len() / 2].to_vec(), "cut short"),
        ("empty", Vec::new(), "neither index.json"),
        ("text", b"hello\n".repeat(1000), "no tar archive"),
        ("gzip-cut", gzip(&good)[..300].to_vec(), "archive"),
        ("missing-layer", change(oci(&layers(), &[]), &is_second, None), "blobs/sha256"),
        ("wrong-layer", change(oci(&layers(), &[]), &is_second, Some(&gzip(b"other"))), "layer"),
        ("wrong-name", archive(&docker(&layers(), &["UPPER CASE"])), "UPPER CASE"),
        (
            "wrong-config",
            change(docker(&layers(), &[]), &|n| n.ends_with(".json") && n != "manifest.json", Some(b"{}")),
            "digest",
        ),
        (
            "missing-config",
            change(docker(&layers(), &[]), &|n| n.ends_with(".json") && n != "manifest.json", None),
            "has no",
        ),
        ("bad-manifest", change(docker(&layers(), &[]), &|n| n == "manifest.json", Some(b"[{}]")), "manifest.json"),
        ("outside", Layer::new().file("../manifest.json", "[]").tar(), "strange name"),
        ("no-images", change(docker(&layers(), &[]), &|n| n == "manifest.json", Some(b"[]")), "0 images"),
    ];
    for (name, bytes, says) in cases {
        let scratch = Scratch::new(&format!("broken-{name}"));
        let error = load(&scratch, bytes).await.expect_err(name);
        assert_eq!(error.kind, ImageErrorKind::BadImage, "{name}: {error}");
        assert!(error.message.contains(says), "{name}: {error}");
        assert!(scratch.leftovers().is_empty(), "{name}");
        assert_eq!(std::fs::read_dir(scratch.options().root.join("layers")).expect("listed").count(), 0, "{name}");
        assert!(scratch.images().await.list().is_empty());
    }
}
