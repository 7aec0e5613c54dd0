//! Whole pulls: from a name to an image that is here, and what is left of those that do not get there.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cricket::image::archive::save::{Format, save};
use cricket::image::pins::Pins;
use cricket::image::pull::Puller;
use cricket::image::store::Store;
use cricket::image::{ImageErrorKind, ImageOptions, Images, LayerPhase, LayerProgress};
use serde_json::json;

use super::fixture::{Content, Directory, OCI_INDEX, OCI_MANIFEST, basic, go_architecture, patience};
use super::mock::{Body, Mock, Reply, Seen};

const NAME: &str = "reg.test/a/b:1";

struct Here {
    directory: Directory,
    store: Store,
    puller: Puller,
}

impl Here {
    fn new(mock: &Mock) -> Self {
        Self::keeping(mock, false)
    }

    fn keeping(mock: &Mock, keep_blobs: bool) -> Self {
        let directory = Directory::with_hosts(&format!("server = {:?}", mock.url()));
        let options = ImageOptions {
            root: directory.0.join("root"),
            registry_config_path: directory.0.clone(),
            in_user_namespace: false,
            ..ImageOptions::default()
        };
        std::fs::create_dir_all(&options.root).expect("a directory");
        let store = Store::open_with(&options.root, false, Pins::default(), keep_blobs).expect("a store");
        let puller = Puller::with_patience(&options, store.clone(), patience());
        Self { directory, store, puller }
    }

    fn temporary(&self) -> usize {
        let layers = self.directory.0.join("root/layers");
        let entries = std::fs::read_dir(layers).expect("layers");
        entries.filter(|e| e.as_ref().is_ok_and(|e| e.file_name().as_encoded_bytes().starts_with(b"."))).count()
    }
}

async fn serving(content: Content) -> Mock {
    Mock::start(move |seen: &Seen| content.answer(seen)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_and_then_only_asked_about() {
    let mut content = Content::default();
    let digest = content.add_image("1", &[300_000, 10, 2_000_000, 0, 70_000, 900]);
    let mock = serving(content).await;
    let here = Here::new(&mock);
    let reports = Arc::new(Mutex::new(Vec::<LayerProgress>::new()));
    let sink = Arc::clone(&reports);
    let image = here
        .puller
        .pull(NAME, None, Some(Arc::new(move |now| sink.lock().expect("no panic").push(now))))
        .await
        .expect("an image");
    assert_eq!((image.repo_tags.as_slice(), image.layers.len()), ([NAME.to_owned()].as_slice(), 6));
    assert_eq!(image.repo_digests, [format!("reg.test/a/b@{digest}")]);
    let reports = reports.lock().expect("no panic").clone();
    let done = reports.iter().filter(|now| now.phase == LayerPhase::Done);
    assert!(done.clone().all(|now| now.done_bytes == now.total_bytes && now.total_bytes > 0));
    assert_eq!(done.count(), 6);
    let before = mock.seen().len();
    let again = here.puller.pull(NAME, None, None).await.expect("the image");
    assert_eq!(again.id, image.id);
    let asked: Vec<_> = mock.seen()[before..].iter().map(|seen| seen.method.clone()).collect();
    assert_eq!(asked, ["HEAD"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_is_pulled_and_shared_layers_are_not() {
    let mut old = Content::default();
    old.add_image("1", &[100_000]);
    let mut new = Content::default();
    new.add_image("1", &[100_000, 50_000]);
    let (moved, told) = (Arc::new(AtomicBool::new(false)), old.clone());
    let switch = Arc::clone(&moved);
    let mock = Mock::start(move |seen: &Seen| match seen.method.as_str() {
        // A registry that knows no HEAD.
        "HEAD" => Reply::new(405, ""),
        _ if switch.load(Ordering::SeqCst) => new.answer(seen),
        _ => told.answer(seen),
    })
    .await;
    let here = Here::new(&mock);
    let first = here.puller.pull(NAME, None, None).await.expect("an image");
    let blobs = mock.count("/blobs/");
    moved.store(true, Ordering::SeqCst);
    let second = here.puller.pull(NAME, None, None).await.expect("another image");
    assert_ne!(first.id, second.id);
    assert_eq!(mock.count("/blobs/"), blobs + 2, "a config and one layer");
    let found = here.store.find(NAME).expect("no error").expect("an image");
    assert_eq!(found.id, second.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_of_this_machine_is_taken_from_an_index() {
    let mut content = Content::default();
    let own = content.add_image("", &[5_000]);
    let other = content.add_image("", &[6_000]);
    let entry = |digest: &cricket::image::digest::Digest, architecture: &str| {
        let size = content.manifests[&digest.to_string()].1.len();
        json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": architecture}})
    };
    let entries = [entry(&other, "unknown"), entry(&other, "s390x"), entry(&own, go_architecture())];
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let digest = content.add_manifest("1", OCI_INDEX, &index);
    let mock = serving(content).await;
    let here = Here::new(&mock);
    let image = here.puller.pull(NAME, None, None).await.expect("an image");
    assert_eq!(image.repo_digests, [format!("reg.test/a/b@{digest}")]);
    assert_eq!(mock.count(&own.to_string()), 1);
    here.puller.pull(&format!("reg.test/a/b@{digest}"), None, None).await.expect("by digest");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_of_one_image_are_one_and_other_credentials_are_another() {
    let mut content = Content::default();
    content.add_image("1", &[400_000, 400_000]);
    let mock = serving(content).await;
    let here = Here::new(&mock);
    let pull = |credentials| here.puller.pull(NAME, credentials, None);
    let (a, b) = tokio::join!(pull(None), pull(None));
    assert_eq!(a.expect("an image").id, b.expect("an image").id);
    assert_eq!((mock.count("/manifests/"), mock.count("/blobs/")), (1, 3));
    let (c, d) = tokio::join!(pull(basic("a", "b")), pull(basic("a", "c")));
    assert!(c.is_ok() && d.is_ok());
    assert_eq!((mock.count("/manifests/"), mock.count("/blobs/")), (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn row_27_an_image_that_is_here_is_not_for_those_who_may_not_pull_it() {
    let mut content = Content::default();
    content.add_image("1", &[1000]);
    let mock = Mock::start(move |seen: &Seen| match seen.header("authorization") {
        Some("Basic dXNlcjpzZWNyZXQ=") => content.answer(seen),
        _ => Reply::new(401, "").header("www-authenticate", "Basic realm=\"r\""),
    })
    .await;
    let here = Here::new(&mock);
    here.puller.pull(NAME, basic("user", "secret"), None).await.expect("an image");
    for credentials in [None, basic("user", "wrong")] {
        let error = here.puller.pull(NAME, credentials, None).await.expect_err("refused");
        assert_eq!(error.kind, ImageErrorKind::Unauthorized, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_pull_leaves_finished_layers_only_and_the_next_one_finds_them() {
    let mut content = Content::default();
    content.add_image("1", &[1000, 3_000_000]);
    let slow = Arc::new(AtomicBool::new(true));
    let switch = Arc::clone(&slow);
    let mock = Mock::start(move |seen: &Seen| {
        let reply = content.answer(seen);
        match &reply.body {
            Body::Whole(bytes) if bytes.len() > 100_000 && switch.load(Ordering::SeqCst) => {
                let body = Body::Stall(bytes.clone(), 1_000_000);
                reply.body(body)
            }
            _ => reply,
        }
    })
    .await;
    let here = Here::new(&mock);
    let small_is_done = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&small_is_done);
    let sink = Arc::new(move |now: LayerProgress| {
        if now.phase == LayerPhase::Done {
            told.notify_one();
        }
    });
    tokio::select! {
        _ = here.puller.pull(NAME, None, Some(sink)) => panic!("the registry stalls"),
        () = small_is_done.notified() => {}
    }
    let begun = std::time::Instant::now();
    while here.temporary() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "the unfinished layer is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(here.store.find(NAME).expect("no error").is_none());
    slow.store(false, Ordering::SeqCst);
    let blobs = mock.count("/blobs/");
    here.puller.pull(NAME, None, None).await.expect("an image");
    assert_eq!(mock.count("/blobs/"), blobs + 2, "the config and the unfinished layer");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_22_a_blob_with_other_bytes_is_no_layer() {
    let mut content = Content::default();
    content.add_image("1", &[100_000]);
    let mut evil = content.clone();
    evil.blobs.values_mut().filter(|blob| blob.len() > 10_000).for_each(|blob| blob[5_000] ^= 1);
    let mock = serving(evil).await;
    let here = Here::new(&mock);
    let error = here.puller.pull(NAME, None, None).await.expect_err("other bytes");
    assert_eq!(error.kind, ImageErrorKind::BadImage, "{error}");
    assert_eq!((here.temporary(), here.store.list().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_registry_keeps_its_kind_through_the_unpacker() {
    let mut content = Content::default();
    content.add_image("1", &[100_000]);
    let mock = Mock::start(move |seen: &Seen| match content.answer(seen) {
        Reply { body: Body::Whole(bytes), .. } if bytes.len() > 10_000 => Reply::new(503, ""),
        reply => reply,
    })
    .await;
    let here = Here::new(&mock);
    let error = here.puller.pull(NAME, None, None).await.expect_err("busy");
    assert_eq!(error.kind, ImageErrorKind::Unavailable, "{error}");
    assert!(error.message.starts_with("RegistryUnavailable: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_do_not_fit_their_config_are_refused() {
    let mut content = Content::default();
    let digest = content.add_image("1", &[1000, 2000]);
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&content.manifests[&digest.to_string()].1).expect("a manifest");
    manifest["layers"].as_array_mut().expect("layers").pop();
    content.add_manifest("1", OCI_MANIFEST, &manifest);
    let mock = serving(content).await;
    let error = Here::new(&mock).puller.pull(NAME, None, None).await.expect_err("one layer is missing");
    assert_eq!(error.kind, ImageErrorKind::BadImage, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_service_pulls_from_a_real_registry() {
    let registry = super::real::Registry::plain();
    let mut content = Content::default();
    let digest = content.add_image("1", &[4_000_000, 1_000]);
    registry.put(&content, "x/y", "1", &digest).await;
    let directory = Directory::new();
    let images = open(&directory.0).await;
    let name = format!("{}/x/y:1", registry.address);
    let image = images.pull(&name, None, None).await.expect("an image");
    assert_eq!(image.repo_digests, [format!("{}/x/y@{digest}", registry.address)]);
    drop(images);
    let images = open(&directory.0).await;
    assert_eq!(images.find(&name).expect("still here").id, image.id);
    assert!(images.remove(&name).await.expect("removed") && images.find(&name).is_none());
}

async fn open(directory: &Path) -> Images {
    let options = ImageOptions {
        root: directory.join("root"),
        registry_config_path: directory.join("certs.d"),
        in_user_namespace: false,
        ..ImageOptions::default()
    };
    Images::open(options).await.expect("the image service")
}

/// The digest that skopeo finds in what we save.
fn digest_of_saved(here: &Here) -> String {
    let path = here.directory.0.join("saved.tar");
    let mut file = std::fs::File::create(&path).expect("a file");
    save(&here.store, &[NAME.to_owned()], Format::Oci, &mut file).expect("saved");
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo.args(["--insecure-policy", "inspect", "--format", "{{.Digest}} {{len .Layers}}"]);
    let output =
        skopeo.arg(format!("oci-archive:{}", path.display())).output().expect("skopeo; apt-get install skopeo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a text").trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pulled_with_its_blobs_is_saved_with_the_registrys_digests() {
    let mut content = Content::default();
    let digest = content.add_image("1", &[300_000, 10, 70_000]);
    let blobs: u64 = content.blobs.values().map(|blob| blob.len() as u64).sum();
    let mock = serving(content).await;
    let here = Here::new(&mock);
    here.puller.pull(NAME, None, None).await.expect("an image");
    let without = here.store.total().0;
    assert!(!digest_of_saved(&here).starts_with(&digest.to_string()), "the manifest is made anew");
    // Another daemon on the same root, told to keep blobs: the next pull fetches them, the one after that nothing.
    let Here { directory, .. } = here;
    let root = directory.0.join("root");
    let store = Store::open_with(&root, false, Pins::default(), true).expect("a store");
    let options = ImageOptions { root, registry_config_path: directory.0.clone(), ..ImageOptions::default() };
    let puller = Puller::with_patience(&options, store.clone(), patience());
    let here = Here { directory, store, puller };
    let image = here.puller.pull(NAME, None, None).await.expect("an image");
    assert_eq!(digest_of_saved(&here), format!("{digest} 3"));
    assert!(here.store.total().0 >= without + blobs / 2 && here.temporary() == 0);
    let before = mock.count("/blobs/");
    here.puller.pull(NAME, None, None).await.expect("the same");
    assert_eq!(mock.count("/blobs/"), before);
    assert!(here.store.remove(&image.id).expect("removed").0);
    assert_eq!(here.store.total(), (0, 0));
    // And at once.
    let fresh = Here::keeping(&mock, true);
    fresh.puller.pull(NAME, None, None).await.expect("an image");
    assert_eq!(digest_of_saved(&fresh), format!("{digest} 3"));
}
