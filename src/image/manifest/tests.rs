//! What is taken for a manifest, and what is not.

use super::*;
use serde_json::{Value, json};

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn descriptor(media_type: &str, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{HEX}"), "size": size})
}

fn image() -> Value {
    json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.oci.image.config.v1+json", 100),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", 1000)],
    })
}

fn with(mut value: Value, field: &str, new: Value) -> Value {
    value[field] = new;
    value
}

fn parse(value: &Value, declared: Option<&str>) -> Result<Manifest, ManifestError> {
    Manifest::parse(value.to_string().as_bytes(), declared)
}

#[test]
fn manifests_of_both_families_are_read() {
    let docker = json!({
        "schemaVersion": 2, "mediaType": DOCKER,
        "config": descriptor("application/vnd.docker.container.image.v1+json", 100),
        "layers": [descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", 5)],
    });
    for (value, declared) in [
        (image(), Some(OCI)),
        (image(), None),
        (image(), Some("text/plain; charset=utf-8")),
        (with(image(), "mediaType", json!(OCI)), Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8")),
        (docker.clone(), Some(DOCKER)),
        (docker, None),
    ] {
        assert!(matches!(parse(&value, declared), Ok(Manifest::Image(m)) if m.layers.len() == 1), "{value}");
    }
}

#[test]
fn row_23_a_manifest_that_is_also_an_index_is_refused() {
    let both = with(image(), "manifests", json!([]));
    for (value, declared) in [
        (both.clone(), Some(OCI)),
        (both, Some(OCI_INDEX)),
        (image(), Some(OCI_INDEX)),
        (json!({"schemaVersion": 2, "manifests": []}), Some(OCI)),
        (with(image(), "mediaType", json!(OCI_INDEX)), None),
        (with(image(), "mediaType", json!(DOCKER)), Some(OCI)),
        (with(image(), "fsLayers", json!([])), Some(OCI)),
        (json!({"schemaVersion": 2, "manifests": [], "config": descriptor("x", 1)}), None),
    ] {
        assert!(matches!(parse(&value, declared), Err(ManifestError::Ambiguous(_))), "{value} as {declared:?}");
    }
    let twice = format!(r#"{{"schemaVersion":2,"layers":[],"layers":[],"config":{}}}"#, descriptor("x", 1));
    assert!(matches!(Manifest::parse(twice.as_bytes(), None), Err(ManifestError::Malformed(_))));
}

#[test]
fn limits_and_wrong_fields_are_refused() {
    let layer = descriptor("application/vnd.oci.image.layer.v1.tar", 1);
    let artifact = with(image(), "config", descriptor("application/vnd.cncf.helm.config.v1+json", 1));
    let encrypted = descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", 1);
    for value in [
        json!({}),
        json!([]),
        json!({"schemaVersion": 1, "fsLayers": []}),
        json!({"schemaVersion": 2}),
        with(image(), "config", Value::Null),
        with(image(), "config", descriptor("application/vnd.oci.image.config.v1+json", CONFIG_BYTES_MAX + 1)),
        with(image(), "layers", Value::Null),
        with(image(), "layers", json!(vec![layer.clone(); LAYERS_MAX + 1])),
        with(image(), "layers", json!([with(layer.clone(), "size", json!(-1))])),
        with(image(), "layers", json!([with(layer.clone(), "size", json!(1.5))])),
        with(image(), "layers", json!([with(layer.clone(), "size", json!(u64::MAX)), layer.clone()])),
        with(image(), "layers", json!([with(layer.clone(), "digest", json!("sha256:../../etc"))])),
        with(image(), "layers", json!([with(layer, "digest", json!(""))])),
        with(image(), "layers", json!([encrypted])),
        artifact,
    ] {
        parse(&value, None).expect_err(&value.to_string());
    }
    let padded = format!("{}{}", image(), " ".repeat(MANIFEST_BYTES_MAX as usize));
    assert!(matches!(Manifest::parse(padded.as_bytes(), None), Err(ManifestError::TooMuch { .. })));
    let nested = "[".repeat(1 << 20);
    assert!(matches!(Manifest::parse(nested.as_bytes(), None), Err(ManifestError::Malformed(_))));
}

#[test]
fn urls_of_foreign_layers_are_not_kept() {
    let mut foreign = descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", 1);
    foreign["urls"] = json!(["http://169.254.169.254/latest"]);
    let parsed = parse(&with(image(), "layers", json!([foreign])), None).expect("a manifest");
    assert!(!format!("{parsed:?}").contains("169.254"));
}

#[test]
fn an_index_offers_images_and_no_attestations() {
    let entry = |media_type: &str, os: &str, architecture: &str, size: u64| {
        with(descriptor(media_type, size), "platform", json!({"os": os, "architecture": architecture}))
    };
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        entry(OCI, "unknown", "unknown", 1),
        with(entry(OCI, "linux", "amd64", 2), "annotations", json!({"vnd.docker.reference.type": "attestation-manifest"})),
        with(descriptor(OCI, 3), "artifactType", json!("application/spdx+json")),
        entry("application/vnd.oci.artifact", "linux", "amd64", 4),
        descriptor(OCI, 5),
        entry(OCI, "linux", "arm64", 6),
        entry(OCI, "linux", "amd64", 7),
    ]});
    let Manifest::Index(index) = parse(&index, Some(OCI_INDEX)).expect("an index") else { panic!("an index") };
    let host = |architecture: &str| Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: String::new(),
    };
    assert_eq!(index.choose(&host("amd64")).expect("an entry").size, 7);
    assert_eq!(index.choose(&host("arm64")).expect("an entry").size, 6);
    assert_eq!(index.choose(&host("s390x")).expect("the one that says nothing").size, 5);
    let named = ImageIndex { entries: index.entries.into_iter().filter(|e| e.platform.is_some()).collect() };
    let error = named.choose(&host("s390x")).expect_err("none fits");
    assert_eq!(error.to_string(), "the image is not made for linux/s390x; it is made for: linux/arm64, linux/amd64");
}

proptest::proptest! {
    #[test]
    fn no_document_is_too_odd_to_be_read(text in r#"(\{|\}|\[|\]|,|:|2|"schemaVersion"|"layers"|"manifests"|"config"|"size"|"digest"|"platform"|"os"|null|-1){0,40}"#) {
        let _ = Manifest::parse(text.as_bytes(), Some(OCI));
    }
}
