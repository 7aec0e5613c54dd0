//! Signature policy, with keys and signatures made here by openssl as cosign makes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use cricket::config::SignatureRule;
use cricket::image::digest::Digest;
use cricket::image::pull::Puller;
use cricket::image::store::Store;
use cricket::image::{ImageError, ImageErrorKind, ImageOptions};
use serde_json::json;

use super::fixture::{Content, Directory, OCI_MANIFEST, patience};
use super::mock::{Mock, Seen};

const NAME: &str = "reg.test/a/b:1";

fn openssl(directory: &Path, arguments: &[&str]) {
    let done = Command::new("openssl").args(arguments).current_dir(directory).output().expect("openssl");
    assert!(done.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// `NAME.key` and `NAME.pub`.
fn make_key(directory: &Path, name: &str) -> PathBuf {
    let (key, public) = (format!("{name}.key"), format!("{name}.pub"));
    openssl(directory, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key]);
    openssl(directory, &["ec", "-in", &key, "-pubout", "-out", &public]);
    directory.join(public)
}

/// Adds cosign's signature of `claimed` beside `image`.
fn sign(content: &mut Content, image: &Digest, claimed: &str, directory: &Path, key: &str) {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": "reg.test/a/b"},
            "image": {"docker-manifest-digest": claimed},
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    std::fs::write(directory.join("payload"), payload.to_string()).expect("a file");
    openssl(directory, &["dgst", "-sha256", "-sign", &format!("{key}.key"), "-out", "signature", "payload"]);
    openssl(directory, &["base64", "-A", "-in", "signature", "-out", "signature.b64"]);
    let signature = std::fs::read_to_string(directory.join("signature.b64")).expect("base64");
    let payload_type = "application/vnd.dev.cosign.simplesigning.v1+json";
    let mut layer = content.add_blob(payload_type, payload.to_string().into_bytes());
    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
    let config = content.add_blob("application/vnd.oci.image.config.v1+json", b"{}".to_vec());
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
    let tag = format!("{}.sig", image.to_string().replace(':', "-"));
    content.add_manifest(&tag, OCI_MANIFEST, &manifest);
}

/// Pulls under a policy for `scope`; answers what came of it and how many blobs were asked for.
async fn pull(content: &Content, scope: &str, keys: Vec<PathBuf>) -> (Result<(), ImageError>, usize) {
    let content = content.clone();
    let mock = Mock::start(move |seen: &Seen| content.answer(seen)).await;
    let directory = Directory::with_hosts(&format!("server = {:?}", mock.url()));
    let options = ImageOptions {
        root: directory.0.join("root"),
        registry_config_path: directory.0.clone(),
        policy: vec![SignatureRule { scope: scope.to_owned(), keys }],
        ..ImageOptions::default()
    };
    std::fs::create_dir_all(&options.root).expect("a directory");
    let store = Store::open(&options.root, false).expect("a store");
    let puller = Puller::with_patience(&options, store, patience());
    let first = puller.pull(NAME, None, None).await.map(|_| ());
    // What is here already is checked again.
    let second = puller.pull(NAME, None, None).await.map(|_| ());
    assert_eq!(first.is_ok(), second.is_ok());
    (first, mock.count("/blobs/"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_taken_if_a_key_of_the_policy_signed_it() {
    let keys = Directory::new();
    let (ours, other) = (make_key(&keys.0, "ours"), make_key(&keys.0, "other"));
    let mut content = Content::default();
    let digest = content.add_image("1", &[1000]);
    sign(&mut content, &digest, &digest.to_string(), &keys.0, "ours");
    for (scope, accepted) in [("reg.test/a", vec![ours.clone()]), ("*", vec![other.clone(), ours.clone()])] {
        let (result, _) = pull(&content, scope, accepted).await;
        result.expect(scope);
    }
    let (result, blobs) = pull(&content, "reg.test", vec![other.clone()]).await;
    let error = result.expect_err("signed by another");
    assert_eq!(error.kind, ImageErrorKind::Untrusted);
    assert!(error.message.starts_with("SignatureValidationFailed: "), "{error}");
    assert_eq!(blobs, 2, "the payload, for each pull; no config and no layer");
    pull(&content, "another.test", vec![other]).await.0.expect("no rule for this registry");
}

#[tokio::test(flavor = "multi_thread")]
async fn unsigned_images_and_signatures_of_something_else_are_refused() {
    let keys = Directory::new();
    let ours = make_key(&keys.0, "ours");
    let mut unsigned = Content::default();
    let digest = unsigned.add_image("1", &[1000]);
    let mut of_another = unsigned.clone();
    sign(&mut of_another, &digest, &format!("sha256:{}", "ab".repeat(32)), &keys.0, "ours");
    let mut tampered = unsigned.clone();
    sign(&mut tampered, &digest, &digest.to_string(), &keys.0, "ours");
    let mut moved = tampered.clone();
    // The tag moves to an image that nobody signed; the signature of the old one is still there.
    moved.add_image("1", &[2000]);
    let tag = format!("{}.sig", digest.to_string().replace(':', "-"));
    let list = tampered.manifests.get_mut(&tag).expect("the signature");
    list.1 = String::from_utf8(list.1.clone()).expect("JSON").replace("\"ME", "\"MI").into_bytes();
    for (what, content) in
        [("unsigned", unsigned), ("of another", of_another), ("tampered", tampered), ("moved", moved)]
    {
        let error = pull(&content, "reg.test/a/b", vec![ours.clone()]).await.0.expect_err(what);
        assert_eq!(error.kind, ImageErrorKind::Untrusted, "{what}: {error}");
    }
    let mut signed = Content::default();
    let digest = signed.add_image("1", &[1000]);
    sign(&mut signed, &digest, &digest.to_string(), &keys.0, "ours");
    let no_key = pull(&signed, "*", vec![keys.0.join("none.pub")]).await.0.expect_err("no key");
    assert!(no_key.message.contains("none.pub"), "{no_key}");
}
