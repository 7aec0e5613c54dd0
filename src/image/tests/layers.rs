//! What a layer becomes on disk, and how layers and images come and go.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::support::*;
use crate::image::ImageErrorKind;
use crate::image::store::ImageNames;

#[tokio::test]
async fn every_kind_of_entry_is_unpacked_as_written() {
    if !in_node("layers::every_kind_of_entry_is_unpacked_as_written") {
        return;
    }
    let scratch = Scratch::new("kinds");
    let long = "l".repeat(120);
    let tar = Layer::new()
        .raw(b'5', b"./", b"", b"", |h| h.set_mode(0o1777))
        .dir("bin/")
        .raw(b'0', b"bin/su", b"", b"#!", |h| {
            h.set_mode(0o4755);
            h.set_uid(3);
            h.set_gid(4);
        })
        .hard_link("bin/su2", "bin/su")
        .symlink("sh", "/bin/sh")
        .entry(b'6', "pipe", "", 0o600, b"")
        .entry(b'3', "null", "", 0o666, b"")
        .pax(&[("SCHILY.xattr.user.note", b"a\0b"), ("mtime", b"12.5"), ("path", long.as_bytes()), ("uid", b"65000")])
        .file("short", "data")
        .file("no/parent", "x")
        .tar();
    let tree = unpack(&scratch.store(), &tar).await.expect("unpacked");
    let stat = |path: &str| tree.join(path).symlink_metadata().unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(stat("").permissions().mode() & 0o7777, 0o1777);
    assert_eq!((stat("").mtime(), stat("bin").mtime()), (1_000_000_000, 1_000_000_000));
    let su = stat("bin/su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.nlink()), (0o4755, 3, 4, 2));
    assert_eq!(su.ino(), stat("bin/su2").ino());
    assert_eq!(std::fs::read_link(tree.join("sh")).expect("a link").to_str(), Some("/bin/sh"));
    assert!(stat("pipe").file_type().is_fifo());
    assert!(!tree.join("null").exists());
    let file = stat(&long);
    assert_eq!((file.uid(), file.mtime(), file.mtime_nsec(), file.len()), (65000, 12, 500_000_000, 4));
    let mut value = [0; 8];
    assert_eq!(rustix::fs::lgetxattr(tree.join(&long), "user.note", &mut value[..]), Ok(3));
    assert_eq!(stat("no").mode() & 0o7777, 0o755);
    assert!(scratch.leftovers().is_empty());
}

#[tokio::test]
async fn compressed_and_plain_blobs_give_the_same_layer() {
    if !in_node("layers::compressed_and_plain_blobs_give_the_same_layer") {
        return;
    }
    let tar = Layer::new().file("f", &"text ".repeat(100_000)).tar();
    let (front, back) = tar.split_at(tar.len() / 3);
    let members = [gzip(front), gzip(back)].concat();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..]].concat();
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).expect("compressed");
    let chunked = [zstd(front), zstd(back), skippable.clone()].concat();
    let skippable_first = [skippable, zstd(&tar)].concat();
    for (name, blob) in [("gzip", gzip(&tar)), ("members", members), ("chunked", chunked), ("skip", skippable_first)] {
        let scratch = Scratch::new(&format!("compressed-{name}"));
        let store = scratch.store();
        let mut seen = 0;
        store.layers().unpack(&blob[..], &descriptor(&blob), &sha256(&tar), |n| seen += n).await.expect(name);
        assert_eq!(seen, blob.len() as u64);
        let file = std::fs::read(store.layers().tree(&sha256(&tar)).join("f")).expect("the file");
        assert_eq!(file.len(), 500_000, "{name}");
    }
}

#[tokio::test]
async fn bytes_that_are_not_what_they_claim_leave_nothing() {
    if !in_node("layers::bytes_that_are_not_what_they_claim_leave_nothing") {
        return;
    }
    let scratch = Scratch::new("claims");
    let store = scratch.store();
    let tar = Layer::new().file("f", &"x".repeat(200_000)).tar();
    let blob = gzip(&tar);
    let mut damaged = blob.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let other = sha256(b"other");
    let mut longer = descriptor(&blob);
    longer.size += 1;
    let mut shorter = descriptor(&blob);
    shorter.size -= 1;
    let mut swapped = descriptor(&blob);
    swapped.digest = other.clone();
    let cases = [
        ("short", &blob[..blob.len() - 9], descriptor(&blob), sha256(&tar)),
        ("damaged", &damaged[..], descriptor(&blob), sha256(&tar)),
        ("wrong size", &blob[..], longer, sha256(&tar)),
        ("too long", &blob[..], shorter, sha256(&tar)),
        ("wrong digest", &blob[..], swapped, sha256(&tar)),
        ("wrong diff id", &blob[..], descriptor(&blob), other),
        ("no tar", &b"hello"[..], descriptor(b"hello"), sha256(b"hello")),
        ("xz", &b"\xfd7zXZ\0...."[..], descriptor(b"\xfd7zXZ\0...."), sha256(b"")),
    ];
    for (name, bytes, descriptor, diff_id) in cases {
        let error = store.layers().unpack(bytes, &descriptor, &diff_id, |_| ()).await.expect_err(name);
        assert_eq!(error.kind, ImageErrorKind::BadImage, "{name}: {error}");
        assert!(error.message.contains(&descriptor.digest.to_string()), "{name}: {error}");
        assert!(!store.layers().contains(&diff_id), "{name}");
    }
    assert!(scratch.leftovers().is_empty());
}

#[tokio::test]
async fn a_dropped_unpack_stops_and_leaves_nothing() {
    if !in_node("layers::a_dropped_unpack_stops_and_leaves_nothing") {
        return;
    }
    let scratch = Scratch::new("dropped");
    let store = scratch.store();
    let tar = Layer::new().file("f", &"x".repeat(500_000)).tar();
    let (mut writer, reader) = tokio::io::duplex(1 << 10);
    let layers = store.layers().clone();
    let (claim, diff_id) = (descriptor(&tar), sha256(&tar));
    let job = tokio::spawn(async move { layers.unpack(reader, &claim, &diff_id, |_| ()).await });
    tokio::io::AsyncWriteExt::write_all(&mut writer, &tar[..300_000]).await.expect("written");
    job.abort();
    assert!(job.await.expect_err("aborted").is_cancelled());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !scratch.leftovers().is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", scratch.leftovers());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_same_layer_unpacked_twice_at_once_is_one() {
    if !in_node("layers::the_same_layer_unpacked_twice_at_once_is_one") {
        return;
    }
    let scratch = Scratch::new("twice");
    let store = scratch.store();
    let tar = Layer::new().file("f", "x").tar();
    let (one, two) = tokio::join!(unpack(&store, &tar), unpack(&store, &tar));
    assert_eq!(one.expect("one"), two.expect("two"));
    assert!(scratch.leftovers().is_empty());
}

#[tokio::test]
async fn a_removed_image_is_gone_with_all_names_and_its_own_layers() {
    if !in_node("layers::a_removed_image_is_gone_with_all_names_and_its_own_layers") {
        return;
    }
    let scratch = Scratch::new("remove");
    let store = scratch.store();
    let shared = Layer::new().file("shared", "x").tar();
    let own = Layer::new().file("own", "y").tar();
    let one = commit(&store, &[shared.clone(), own.clone()], "docker.io/library/one:1").await;
    commit(&store, std::slice::from_ref(&shared), "docker.io/library/two:1").await;
    let names = ImageNames { repo_tags: vec!["reg.io/other:2".to_owned()], ..ImageNames::default() };
    store.commit_image(config(&[shared.clone(), own.clone()]), None, names).await.expect("committed");
    assert_eq!(store.find("one:1").expect("found").expect("one").repo_tags.len(), 2);

    // A store opened again knows the same.
    let store = scratch.store();
    assert_eq!(store.list().len(), 2);
    assert!(store.remove("reg.io/other:2").expect("removed").0);
    assert!(store.find("one:1").expect("looked").is_none() && store.find(&one.id).expect("looked").is_none());
    assert!(store.layers().contains(&sha256(&shared)) && !store.layers().contains(&sha256(&own)));
    assert!(!store.remove("one:1").expect("nothing").0);
    assert_eq!(scratch.store().list().len(), 1);
    assert!(scratch.leftovers().is_empty());
}

#[tokio::test]
async fn a_tag_moves_to_the_image_that_came_last() {
    if !in_node("layers::a_tag_moves_to_the_image_that_came_last") {
        return;
    }
    let scratch = Scratch::new("retag");
    let store = scratch.store();
    let old = commit(&store, &[Layer::new().file("a", "1").tar()], "docker.io/library/x:latest").await;
    let new = commit(&store, &[Layer::new().file("a", "2").tar()], "docker.io/library/x:latest").await;
    assert_eq!(store.find("x").expect("looked").map(|i| i.id.clone()), Some(new.id.clone()));
    assert!(scratch.store().find(&old.id).expect("looked").expect("still here").repo_tags.is_empty());
}

#[tokio::test]
async fn a_held_layer_outlives_a_removal() {
    if !in_node("layers::a_held_layer_outlives_a_removal") {
        return;
    }
    let scratch = Scratch::new("hold");
    let store = scratch.store();
    let layer = Layer::new().file("a", "1").tar();
    commit(&store, std::slice::from_ref(&layer), "docker.io/library/x:1").await;
    let hold = store.layers().hold();
    assert!(store.layers().contains(&sha256(&layer)));
    assert!(store.remove("x:1").expect("removed").0);
    assert!(store.layers().contains(&sha256(&layer)));
    let names = ImageNames { repo_tags: vec!["docker.io/library/y:1".to_owned()], ..ImageNames::default() };
    store.commit_image(config(std::slice::from_ref(&layer)), None, names).await.expect("all layers are still here");
    drop(hold);
    assert!(store.remove("y:1").expect("removed").0);
    assert!(!store.layers().contains(&sha256(&layer)));
}

#[tokio::test]
async fn an_image_without_its_layers_is_refused() {
    let scratch = Scratch::new("incomplete");
    let layer = Layer::new().file("a", "1").tar();
    let error = scratch.store().commit_image(config(&[layer]), None, ImageNames::default()).await.expect_err("refused");
    assert_eq!(error.kind, ImageErrorKind::NotFound);
    assert!(scratch.store().list().is_empty());
}

#[tokio::test]
async fn what_a_crash_left_half_made_goes_at_the_next_open() {
    if !in_node("layers::what_a_crash_left_half_made_goes_at_the_next_open") {
        return;
    }
    let scratch = Scratch::new("crash");
    let root = scratch.options().root;
    let layer = Layer::new().file("a", "1").tar();
    let image = commit(&scratch.store(), std::slice::from_ref(&layer), "docker.io/library/x:1").await;
    std::fs::create_dir_all(root.join("layers/.temporary-1/tree/a/b")).expect("made");
    std::fs::write(root.join("images/sha256-1.config"), "{").expect("written");
    std::fs::write(root.join("images/sha256-1.tmp"), "{").expect("written");
    std::fs::create_dir_all(root.join("snapshots/abc/upper")).expect("made");
    std::fs::create_dir_all(root.join("spool/1")).expect("made");
    let images = scratch.images().await;
    assert_eq!(images.list().len(), 1);
    assert_eq!(images.find("x:1").expect("found").id, image.id);
    assert!(scratch.leftovers().is_empty());
    assert!(!root.join("snapshots/abc").exists() && !root.join("images/sha256-1.config").exists());

    // A layer without its record is to be unpacked again; its image is not listed.
    std::fs::remove_file(root.join("layers").join(format!("sha256-{}", sha256(&layer).hex())).join("layer.json"))
        .expect("removed");
    assert!(scratch.images().await.list().is_empty());
    commit(&scratch.store(), &[layer], "docker.io/library/x:1").await;
    assert_eq!(scratch.images().await.list().len(), 1);
}

#[tokio::test]
async fn a_tag_names_one_image_also_after_a_crash_between_two_records() {
    if !in_node("layers::a_tag_names_one_image_also_after_a_crash_between_two_records") {
        return;
    }
    let scratch = Scratch::new("two-records");
    let store = scratch.store();
    let old = commit(&store, &[Layer::new().file("old", "1").tar()], "reg.io/a:1").await;
    let record = scratch.options().root.join("images").join(format!("{}.json", old.id.replace(':', "-")));
    let before = std::fs::read(&record).expect("a record");
    let written = std::fs::metadata(&record).and_then(|m| m.modified()).expect("a time");
    let new = commit(&store, &[Layer::new().file("new", "2").tar()], "reg.io/a:1").await;
    drop(store);
    // The crash came before the old image's record was written without its tag.
    std::fs::write(&record, before).expect("written");
    let file = std::fs::File::options().write(true).open(&record).expect("open");
    file.set_modified(written).expect("a time");
    let store = scratch.store();
    assert_eq!(store.find("reg.io/a:1").expect("no error").expect("an image").id, new.id);
    assert_eq!(store.find(&old.id).expect("no error").expect("an image").repo_tags, Vec::<String>::new());
}
