//! What leaves the store is what came: `save`, `verify`, `prune`, and layers that are written again.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::sync::{Arc, Mutex};

use super::support::*;
use crate::image::archive::save::Format;
use crate::image::digest::Digest;
use crate::image::manifest::{Compression, Descriptor, MediaType};
use crate::image::pins::Pins;
use crate::image::store::original::Came;
use crate::image::store::{ImageNames, Store};
use crate::image::{ImageErrorKind, ImageOptions, Images, Verdict};

/// What is written into it.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An old sparse header: 4096 bytes of data at 8192, in a file of 16384.
fn sparse(layer: Layer) -> Layer {
    let octal = |field: &mut [u8], value: u64| field.copy_from_slice(format!("{value:011o}\0").as_bytes());
    layer.raw(b'S', b"holes", b"", &[7; 4096], |header| {
        let bytes = header.as_mut_bytes();
        octal(&mut bytes[386..398], 8192);
        octal(&mut bytes[398..410], 4096);
        octal(&mut bytes[483..495], 16384);
    })
}

fn odd_layer() -> Vec<u8> {
    let long = "d/".repeat(80) + "file";
    let layer = Layer::new()
        .raw(b'5', b"./", b"", b"", |h| h.set_mode(0o1777))
        .symlink("lib", "usr/lib")
        .dir("usr/lib")
        .file("lib/through", "a link leads here")
        .raw(b'0', b"usr/big", b"", &[3; 300_000], |h| h.set_uid(7))
        .hard_link("usr/big2", "usr/big")
        .entry(b'3', "null", "", 0o666, b"")
        .pax(&[("path", long.as_bytes()), ("comment", b"kept as it is")])
        .file("short", "long name")
        .file("empty", "")
        .file("usr/.wh.gone", "");
    let mut tar = sparse(layer).tar();
    // What stands behind the end marker belongs to the layer's digest too.
    tar.extend_from_slice(&[0; 9000]);
    tar.extend_from_slice(b"rubbish at the end");
    tar
}

pub async fn saved(images: &Images, name: &str, format: Format) -> Vec<u8> {
    let sink = Sink::default();
    images.save(vec![name.to_owned()], format, Box::new(sink.clone())).await.expect("saved");
    sink.0.lock().expect("no panic").clone()
}

#[tokio::test]
async fn an_image_is_saved_with_its_id_and_every_byte_of_its_layers() {
    if !in_node("saving::an_image_is_saved_with_its_id_and_every_byte_of_its_layers") {
        return;
    }
    let scratch = Scratch::new("save");
    let layers = [odd_layer(), Layer::new().file("second", "2").tar()];
    let id = commit(&scratch.store(), &layers, "reg.io/a:1").await.id.clone();
    let images = scratch.images().await;
    for format in [Format::Oci, Format::Docker] {
        let archive = saved(&images, "reg.io/a:1", format).await;
        let mut files = tar::Archive::new(&archive[..]);
        let mut whole = 0;
        for entry in files.entries().expect("a tar") {
            let mut bytes = Vec::new();
            entry.expect("an entry").read_to_end(&mut bytes).expect("whole");
            whole += layers.iter().filter(|layer| **layer == bytes).count();
        }
        assert_eq!(whole, 2, "{format:?}: each layer as it came");
        let other = Scratch::new("save-other");
        let loaded = other.images().await.load(Box::new(Cursor::new(archive)), None).await.expect("loaded");
        assert_eq!(
            (loaded[0].id.as_str(), loaded[0].repo_tags.as_slice()),
            (id.as_str(), &["reg.io/a:1".to_owned()][..])
        );
    }
    let error = images.save(vec!["reg.io/none:1".to_owned()], Format::Oci, Box::new(std::io::sink())).await;
    assert_eq!(error.expect_err("no such image").kind, ImageErrorKind::NotFound);
}

#[tokio::test]
async fn a_layer_with_a_file_twice_is_used_and_honestly_not_saved() {
    if !in_node("saving::a_layer_with_a_file_twice_is_used_and_honestly_not_saved") {
        return;
    }
    let scratch = Scratch::new("twice");
    let tar = Layer::new().file("a", "first").file("a", "second").tar();
    commit(&scratch.store(), &[tar], "reg.io/a:1").await;
    let images = scratch.images().await;
    let error = images.save(vec!["reg.io/a:1".to_owned()], Format::Oci, Box::new(std::io::sink())).await;
    let error = error.expect_err("the first is gone");
    assert!(error.message.contains("a file twice"), "{error}");
    let verified = images.verify(Vec::new(), |_| true).await.expect("verified");
    assert_eq!(verified[0].verdict, Verdict::Unknown);
}

#[tokio::test]
async fn a_changed_layer_is_found_and_the_next_load_mends_it() {
    if !in_node("saving::a_changed_layer_is_found_and_the_next_load_mends_it") {
        return;
    }
    let scratch = Scratch::new("verify");
    let tar = odd_layer();
    commit(&scratch.store(), &[tar.clone(), Layer::new().file("x", "1").tar()], "reg.io/a:1").await;
    let images = scratch.images().await;
    let archive = saved(&images, "reg.io/a:1", Format::Oci).await;
    let verdicts = async |images: &Images| {
        let verified = images.verify(Vec::new(), |_| true).await.expect("verified");
        (verified[0].verdict, verified[0].damaged.clone())
    };
    assert_eq!(verdicts(&images).await, (Verdict::Whole, vec![]));
    let tree = scratch.store().layers().tree(&sha256(&tar));
    std::fs::write(tree.join("usr/big"), [4; 300_000]).expect("changed");
    assert_eq!(verdicts(&images).await, (Verdict::Damaged, vec![sha256(&tar).to_string()]));
    let save = images.save(vec!["reg.io/a:1".to_owned()], Format::Oci, Box::new(std::io::sink()));
    assert_eq!(save.await.expect_err("damaged").kind, ImageErrorKind::BadImage);
    let image = images.find("reg.io/a:1").expect("here");
    assert!(images.snapshot("c", &image, false).await.is_err(), "no container is made of a damaged layer");
    images.load(Box::new(Cursor::new(archive)), None).await.expect("loaded again");
    assert_eq!(verdicts(&images).await, (Verdict::Whole, vec![]));
    assert!(scratch.leftovers().is_empty());
}

#[tokio::test]
async fn a_damaged_layer_that_containers_stand_on_stays_until_they_are_gone() {
    if !in_node("saving::a_damaged_layer_that_containers_stand_on_stays_until_they_are_gone") {
        return;
    }
    let scratch = Scratch::new("standing");
    let tar = Layer::new().file("f", "data").tar();
    commit(&scratch.store(), std::slice::from_ref(&tar), "reg.io/a:1").await;
    let images = scratch.images().await;
    let image = images.find("reg.io/a:1").expect("here");
    let snapshot = images.snapshot("c", &image, false).await.expect("a snapshot");
    std::fs::remove_file(scratch.store().layers().tree(&sha256(&tar)).join("f")).expect("removed");
    let details = Arc::new(Mutex::new(String::new()));
    let told = details.clone();
    let verified = images
        .verify(Vec::new(), move |layer| {
            *told.lock().expect("no panic") = layer.detail;
            true
        })
        .await
        .expect("verified");
    assert_eq!(verified[0].verdict, Verdict::Damaged);
    assert!(details.lock().expect("no panic").contains("containers stand on it"));
    assert!(images.snapshot("c", &image, false).await.is_ok(), "what is there is found again");
    drop(snapshot);
}

#[tokio::test]
async fn prune_takes_what_nothing_needs_and_leaves_what_is_used_or_pinned() {
    if !in_node("saving::prune_takes_what_nothing_needs_and_leaves_what_is_used_or_pinned") {
        return;
    }
    let scratch = Scratch::new("prune");
    let store = scratch.store();
    for name in ["used", "pinned", "idle", "old"] {
        commit(&store, &[Layer::new().file(name, name).tar()], &format!("reg.io/{name}:1")).await;
    }
    // Its name goes to another image.
    commit(&store, &[Layer::new().file("new", "new").tar()], "reg.io/old:1").await;
    let options = ImageOptions { pinned: vec!["reg.io/pin*".to_owned()], ..scratch.options() };
    let images = Images::open(options).await.expect("the service");
    let used = images.find("reg.io/used:1").expect("here");
    let _snapshot = images.snapshot("c", &used, false).await.expect("a snapshot");
    assert!(images.find("reg.io/pinned:1").expect("here").pinned);
    assert_eq!(images.remove("reg.io/pinned:1").await.expect_err("pinned").kind, ImageErrorKind::Busy);
    let (removed, freed) = images.prune(false).await.expect("pruned");
    assert_eq!((removed.len(), removed[0].repo_tags.len()), (1, 0), "only the one without a name");
    assert!(freed > 0);
    let (removed, _) = images.prune(true).await.expect("pruned");
    let mut names: Vec<_> = removed.iter().flat_map(|image| image.repo_tags.clone()).collect();
    names.sort();
    assert_eq!(names, ["reg.io/idle:1", "reg.io/old:1"]);
    assert_eq!(images.list().len(), 2);
}

#[tokio::test]
async fn names_without_a_registry_are_completed_as_configured() {
    if !in_node("saving::names_without_a_registry_are_completed_as_configured") {
        return;
    }
    let scratch = Scratch::new("short");
    commit(&scratch.store(), &[Layer::new().file("f", "f").tar()], "reg.io/tool:1").await;
    let with = async |short_names: &str| {
        let options = ImageOptions { short_names: short_names.to_owned(), ..scratch.options() };
        Images::open(options).await.expect("the service")
    };
    assert!(with("reg.io").await.find("tool:1").is_some());
    assert!(with("docker.io").await.find("tool:1").is_none());
    let error = with("").await.pull("tool:1", None, None).await.expect_err("refused");
    assert_eq!(error.kind, ImageErrorKind::Invalid, "{error}");
}

/// An image of one compressed layer with the manifest that its registry would have.
fn as_pushed(tar: &[u8]) -> (Descriptor, Came) {
    let blob = gzip(tar);
    let (config, layer) =
        (config(&[tar.to_vec()]), Descriptor { media_type: MediaType::Layer(Compression::Gzip), ..descriptor(&blob) });
    // No document of ours has these spaces.
    let manifest = format!(
        r#"{{ "schemaVersion":2, "config": {{"mediaType":"{}","digest":"{}","size":{}}},
  "layers": [{{"mediaType":"{}","digest":"{}","size":{}}}] }}"#,
        MediaType::OciConfig.as_str(),
        sha256(&config),
        config.len(),
        layer.media_type.as_str(),
        layer.digest,
        layer.size
    );
    (layer, Came { digest: sha256(manifest.as_bytes()), bytes: manifest.into_bytes() })
}

async fn commit_as_pushed(store: &Store, tar: &[u8], tag: &str) -> String {
    let (layer, came) = as_pushed(tar);
    store.layers().unpack(&gzip(tar)[..], &layer, &sha256(tar), |_| ()).await.expect("unpacked");
    let names = ImageNames { repo_tags: vec![tag.to_owned()], ..ImageNames::default() };
    store.commit_image(config(&[tar.to_vec()]), Some(came), names).await.expect("committed").id.clone()
}

fn keeping(scratch: &Scratch) -> Store {
    Store::open_with(&scratch.options().root, in_user_namespace(), Pins::default(), true).expect("a store")
}

/// Names and bytes of the files in an archive.
fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let (name, mut bytes) = (entry.path().expect("a path").display().to_string(), Vec::new());
        entry.read_to_end(&mut bytes).expect("whole");
        files.insert(name, bytes);
    }
    files
}

#[tokio::test]
async fn an_image_whose_blobs_are_kept_is_saved_as_it_came() {
    if !in_node("saving::an_image_whose_blobs_are_kept_is_saved_as_it_came") {
        return;
    }
    let scratch = Scratch::new("kept");
    let tar = odd_layer();
    let (layer, came) = as_pushed(&tar);
    let name = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    // Without the key: as ever. Then the blob comes to a layer that is here.
    commit_as_pushed(&scratch.store(), &tar, "reg.io/a:1").await;
    let plain = scratch.store().total();
    let images = scratch.images().await;
    assert!(!files(&saved(&images, "reg.io/a:1", Format::Oci).await).contains_key(&name(&came.digest)));
    let id = commit_as_pushed(&keeping(&scratch), &tar, "reg.io/a:1").await;
    let kept = keeping(&scratch).total();
    assert_eq!(kept.1, plain.1 + 2, "a blob and a manifest");
    assert_eq!(kept.0, plain.0 + layer.size.next_multiple_of(4096) + 4096);
    let images = Images::open(ImageOptions { keep_blobs: true, ..scratch.options() }).await.expect("the service");
    let archive = saved(&images, "reg.io/a:1", Format::Oci).await;
    let found = files(&archive);
    assert_eq!(found.get(&name(&came.digest)), Some(&came.bytes), "the manifest byte for byte");
    assert_eq!(found.get(&name(&layer.digest)), Some(&gzip(&tar)), "the layer as it came");
    assert!(!found.contains_key(&name(&sha256(&tar))), "and no other");
    // It is loaded with all of it elsewhere, and both go with the image.
    let other = Scratch::new("kept-elsewhere");
    let elsewhere = Images::open(ImageOptions { keep_blobs: true, ..other.options() }).await.expect("the service");
    elsewhere.load(Box::new(Cursor::new(archive.clone())), None).await.expect("loaded");
    assert_eq!(saved(&elsewhere, "reg.io/a:1", Format::Oci).await, archive);
    // Docker's archives have plain layers.
    let docker = files(&saved(&images, "reg.io/a:1", Format::Docker).await);
    assert_eq!(docker.get(&format!("{}.tar", sha256(&tar).hex())), Some(&tar));
    drop(images);
    let store = keeping(&scratch);
    assert!(store.remove(&id).expect("removed").0);
    assert_eq!(store.total(), (0, 0));
    assert!(scratch.leftovers().is_empty());
    let left = std::fs::read_dir(scratch.options().root.join("images")).expect("a directory").count();
    assert_eq!(left, 0, "the manifest goes with the image");
}

#[tokio::test]
async fn a_kept_blob_that_is_damaged_is_found_and_comes_again() {
    if !in_node("saving::a_kept_blob_that_is_damaged_is_found_and_comes_again") {
        return;
    }
    let scratch = Scratch::new("kept-damaged");
    let tar = Layer::new().file("a", "1").tar();
    let (layer, _) = as_pushed(&tar);
    commit_as_pushed(&keeping(&scratch), &tar, "reg.io/a:1").await;
    let directory = scratch.options().root.join("layers").join(format!("sha256-{}", sha256(&tar).hex()));
    let blob = directory.join(format!("blob-sha256-{}", layer.digest.hex()));
    std::fs::write(&blob, vec![0; usize::try_from(layer.size).expect("small")]).expect("written");
    let images = Images::open(ImageOptions { keep_blobs: true, ..scratch.options() }).await.expect("the service");
    let failed = images.save(vec!["reg.io/a:1".to_owned()], Format::Oci, Box::new(Sink::default())).await;
    assert_eq!(failed.expect_err("the blob is another one").kind, ImageErrorKind::BadImage);
    let verdict = |verified: Vec<crate::image::VerifiedImage>| verified[0].verdict;
    assert_eq!(verdict(images.verify(Vec::new(), |_| true).await.expect("verified")), Verdict::Damaged);
    assert!(!blob.exists());
    assert_eq!(verdict(images.verify(Vec::new(), |_| true).await.expect("verified")), Verdict::Whole);
    drop(images);
    let store = keeping(&scratch);
    let image = store.find("reg.io/a:1").expect("looked up").expect("there");
    assert!(store.original(&image).is_none(), "a pull sees that it is not all there");
    commit_as_pushed(&store, &tar, "reg.io/a:1").await;
    assert!(store.original(&image).is_some() && blob.exists());
}
