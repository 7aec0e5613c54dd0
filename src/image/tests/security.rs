//! Attacks by the bytes of a layer; their numbers are those of SPECIFICATION.md.

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::support::*;
use crate::image::{ImageError, ImageErrorKind};

/// Unpacks in a fresh store; then nothing outside the layer may have changed.
async fn attack(name: &str, tar: &[u8], check: impl FnOnce(Result<&Path, &ImageError>)) {
    let scratch = Scratch::new(&format!("attack-{name}"));
    let outside = scratch.0.join("outside");
    std::fs::create_dir_all(&outside).expect("made");
    std::fs::write(outside.join("kept"), "kept").expect("written");
    let before = std::fs::metadata(&outside).expect("there");
    let result = unpack(&scratch.store(), tar).await;
    check(result.as_deref());
    assert!(scratch.leftovers().is_empty(), "{name}: {:?}", scratch.leftovers());
    let after = std::fs::metadata(&outside).expect("still there");
    assert_eq!((after.mode(), after.uid(), after.mtime_nsec()), (before.mode(), before.uid(), before.mtime_nsec()));
    assert_eq!(std::fs::read_to_string(outside.join("kept")).expect("still there"), "kept");
    assert_eq!(std::fs::read_dir(&scratch.0).expect("listed").count(), 2, "{name}: something was written outside");
}

fn refused(result: Result<&Path, &ImageError>) {
    let error = result.expect_err("refused");
    assert!(matches!(error.kind, ImageErrorKind::BadImage | ImageErrorKind::Exhausted), "{error}");
    assert!(error.message.len() < 1000, "{error}");
}

#[tokio::test]
async fn row_16_paths_do_not_leave_the_layer() {
    if !in_node("security::row_16_paths_do_not_leave_the_layer") {
        return;
    }
    for path in ["../outside/x", "a/../../x", "..", "a/..", "./../x"] {
        attack("dotdot", &Layer::new().file(path, "x").tar(), refused).await;
        attack("dotdot", &Layer::new().file("a", "x").hard_link("b", path).tar(), refused).await;
    }
    attack("absolute", &Layer::new().file("/etc/x", "x").tar(), |result| {
        assert!(result.expect("harmless").join("etc/x").exists());
    })
    .await;
    for target in ["../../../../outside", "/", "/proc/self/cwd", "..", "."] {
        let tar = Layer::new().symlink("link", target).file("link/x", "x").dir("link/y/z").tar();
        attack("symlink", &tar, |result| {
            assert!(result.is_err() || result.is_ok_and(|tree| tree.join("link").is_symlink()))
        })
        .await;
    }
    attack("usr-merge", &Layer::new().symlink("lib", "/usr/lib").file("lib/x", "x").tar(), |result| {
        let tree = result.expect("harmless");
        assert!(tree.join("usr/lib/x").exists() && tree.join("lib").is_symlink());
    })
    .await;
    let loops = Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", "x").tar();
    attack("loop", &loops, refused).await;
    for target in ["/etc/passwd", "missing", "", "dir", "link/../../outside/kept"] {
        let tar = Layer::new().dir("dir").symlink("link", "/").hard_link("x", target).tar();
        attack("hard-link", &tar, refused).await;
    }
    let through = Layer::new().symlink("up", "../../../outside").hard_link("x", "up/kept").tar();
    attack("hard-link-through", &through, refused).await;
    let file_as_parent = Layer::new().file("f", "x").file("f/x", "x").tar();
    attack("file-parent", &file_as_parent, refused).await;
    attack("nul", &Layer::new().pax(&[("path", b"a\0b")]).file("x", "x").tar(), refused).await;
    attack("root-file", &Layer::new().file("./", "x").tar(), |_| ()).await;
    attack("root-link", &Layer::new().symlink("/", "/outside").tar(), refused).await;
    attack("empty-link", &Layer::new().symlink("l", "").tar(), refused).await;
}

#[tokio::test]
async fn row_17_modes_and_owners_do_not_pass_links() {
    if !in_node("security::row_17_modes_and_owners_do_not_pass_links") {
        return;
    }
    let tar = Layer::new()
        .symlink("d", "../../../outside")
        .raw(b'5', b"d", b"", b"", |h| h.set_mode(0o777))
        .symlink("f", "../../../outside/kept")
        .raw(b'0', b"f", b"", b"new", |h| h.set_uid(7))
        .tar();
    attack("links", &tar, |result| {
        let tree = result.expect("harmless");
        let directory = tree.join("d").symlink_metadata().expect("made");
        assert!(directory.is_dir() && directory.mode() & 0o777 == 0o777);
        assert_eq!(tree.join("f").symlink_metadata().expect("made").uid(), 7);
    })
    .await;
}

#[tokio::test]
async fn row_18_what_two_readers_read_differently_is_refused() {
    if !in_node("security::row_18_what_two_readers_read_differently_is_refused") {
        return;
    }
    let inner = Layer::new().file("smuggled", "x").tar();
    // The header says 0 bytes, PAX says all of the inner archive: the data is data.
    let size = inner.len().to_string();
    let mut bytes = Layer::new().pax(&[("size", size.as_bytes())]).raw(b'0', b"outer", b"", b"", |_| ()).tar();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend_from_slice(&inner);
    bytes.extend_from_slice(&[0; 1024]);
    attack("size", &bytes, |result| {
        let tree = result.expect("harmless");
        assert!(!tree.join("smuggled").exists());
        assert_eq!(tree.join("outer").metadata().expect("made").len(), inner.len() as u64);
    })
    .await;
    let malformed = Layer::new().raw(b'x', b"pax", b"", b"99 path=a\n", |_| ()).file("b", "x").tar();
    attack("pax", &malformed, refused).await;
    let twice = Layer::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("c", "x").tar();
    attack("twice", &twice, refused).await;
    let global = Layer::new().raw(b'g', b"pax", b"", b"12 path=abc\n", |_| ()).file("c", "x").tar();
    attack("global", &global, refused).await;
    let long = Layer::new().raw(b'L', b"l", b"", b"gnu\0", |_| ()).pax(&[("path", b"pax")]).file("c", "x").tar();
    attack("names", &long, refused).await;
    let dangling = Layer::new().file("a", "x").pax(&[("path", b"pax")]).tar();
    attack("dangling", &dangling, refused).await;
    let mut checksum = Layer::new().file("a", "x").tar();
    checksum[0] = b'b';
    attack("checksum", &checksum, refused).await;
    attack("unknown", &Layer::new().entry(b'Z', "a", "", 0o644, b"").tar(), refused).await;
}

#[tokio::test]
async fn row_19_whiteouts_stay_in_their_directory() {
    if !in_node("security::row_19_whiteouts_stay_in_their_directory") {
        return;
    }
    for path in [".wh.", ".wh..", ".wh...", "a/.wh..", ".wh.a/b", ".wh..wh..opq/x"] {
        attack("whiteout", &Layer::new().file(path, "").tar(), refused).await;
    }
    let hidden = "h".repeat(255);
    let name = format!(".wh.{hidden}");
    let long = Layer::new().pax(&[("path", name.as_bytes())]).file("x", "").tar();
    attack("long", &long, |result| {
        let tree = result.expect("fits");
        assert!(tree.join(&hidden).symlink_metadata().expect("a whiteout").file_type().is_char_device());
        assert_eq!(std::fs::read_dir(tree).expect("listed").count(), 1);
    })
    .await;
    let through = Layer::new().symlink("up", "../../../outside").file("up/.wh.kept", "").tar();
    attack("through", &through, |result| {
        result.expect("harmless");
    })
    .await;
    let meta = Layer::new().file(".wh..wh.plnk", "").file(".wh..wh.aufs", "").file("a/.wh..wh..opq", "").tar();
    attack("meta", &meta, |result| {
        assert_eq!(std::fs::read_dir(result.expect("harmless")).expect("listed").count(), 1);
    })
    .await;
}

#[tokio::test]
async fn row_20_no_overlay_attribute_and_no_device() {
    if !in_node("security::row_20_no_overlay_attribute_and_no_device") {
        return;
    }
    let tar = Layer::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/outside"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("SCHILY.xattr.user.kept", b"y"),
        ])
        .dir("d")
        .entry(b'3', "char", "", 0o666, b"")
        .entry(b'4', "block", "", 0o666, b"")
        // VFS_CAP_REVISION_2 with CAP_NET_RAW, as ping has it.
        .pax(&[("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0")])
        .file("ping", "x")
        .tar();
    attack("attributes", &tar, |result| {
        let tree = result.expect("harmless");
        let mut names = [0; 1024];
        let length = rustix::fs::llistxattr(tree.join("d"), &mut names[..]).expect("listed");
        assert_eq!(&names[..length], b"user.kept\0");
        assert!(tree.join("char").symlink_metadata().is_err() && tree.join("block").symlink_metadata().is_err());
        let mut value = [0; 64];
        assert!(rustix::fs::lgetxattr(tree.join("ping"), "security.capability", &mut value[..]).is_ok());
    })
    .await;
}

#[tokio::test]
async fn row_20_a_capability_that_is_none_is_refused_and_named() {
    if !in_node("security::row_20_a_capability_that_is_none_is_refused_and_named") {
        return;
    }
    let tar = Layer::new().pax(&[("SCHILY.xattr.security.capability", b"none")]).file("bin/odd", "x").tar();
    attack("capability", &tar, |result| {
        let error = result.expect_err("refused");
        assert_eq!(error.kind, ImageErrorKind::BadImage, "{error}");
        assert!(error.to_string().contains("bin/odd") && error.to_string().contains("security.capability"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn row_21_bombs_end_early() {
    if !in_node("security::row_21_bombs_end_early") {
        return;
    }
    let scratch = Scratch::new("bombs");
    let store = scratch.store();
    // Four terabytes of zeros, a gzip member repeated for ever.
    let head = Layer::new().raw(b'0', b"f", b"", b"", |h| h.set_size(1 << 42)).bytes_only();
    let zeros = gzip(&vec![0; 64 << 20]);
    for size in [1u64 << 42, 1 << 39] {
        let head = if size == 1 << 42 {
            gzip(&head)
        } else {
            gzip(&Layer::new().raw(b'0', b"f", b"", b"", |h| h.set_size(size)).bytes_only())
        };
        let stream = futures_util::stream::iter(
            std::iter::once(head.clone())
                .chain(std::iter::repeat_n(zeros.clone(), 10_000))
                .map(|chunk| std::io::Result::Ok(bytes::Bytes::from(chunk))),
        );
        let mut claim = descriptor(b"");
        claim.size = 1 << 40;
        let reader = tokio_util::io::StreamReader::new(stream);
        let mut taken = 0;
        let error = store.layers().unpack(reader, &claim, &sha256(b""), |n| taken += n).await.expect_err("refused");
        assert_eq!(error.kind, ImageErrorKind::Exhausted, "{error}");
        // In bytes, for the clock of a busy machine says nothing.
        assert!(taken < 4 << 20, "{taken} compressed bytes were taken");
    }
    assert!(scratch.leftovers().is_empty());

    let deep = "d/".repeat(100_000);
    attack("deep", &Layer::new().pax(&[("path", deep.as_bytes())]).dir("x").tar(), refused).await;
    let deepest = "d/".repeat(2047);
    attack("deepest", &Layer::new().pax(&[("path", deepest.as_bytes())]).dir("x").tar(), |_| ()).await;
    let sparse = [
        ("GNU.sparse.major", &b"0"[..]),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.size", b"1152921504606846976"),
        ("GNU.sparse.map", b"1152921504606846975,1"),
    ];
    attack("sparse", &Layer::new().pax(&sparse).file("f", "x").tar(), refused).await;
    let pax = vec![b'x'; 2 << 20];
    attack("pax", &Layer::new().pax(&[("comment", &pax)]).file("f", "x").tar(), refused).await;
}

/// Layers at the same time as each other, each of which would have the largest window that is taken.
#[tokio::test(flavor = "multi_thread")]
async fn row_21_windows_of_many_layers_do_not_add_up() {
    const LAYERS: u32 = 3;
    const ZEROS: usize = 34 << 20;
    if !in_mount_namespace("security::row_21_windows_of_many_layers_do_not_add_up") {
        return;
    }
    let scratch = Scratch::new("windows");
    let store = scratch.store();
    let mut layers = Vec::new();
    for number in 0..LAYERS {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
        encoder.window_log(25).expect("a window");
        // A second frame is measured like the first.
        let mut small = zstd::encode_all(&b""[..], 1).expect("a frame");
        let mut tar = Layer::new().file("f", &number.to_string()).tar();
        encoder.write_all(&tar).expect("memory");
        tar.resize(tar.len() + ZEROS, 0);
        encoder.write_all(&tar[tar.len() - ZEROS..]).expect("memory");
        small.extend(encoder.finish().expect("a frame"));
        layers.push((small, sha256(&tar)));
    }
    let before = memory("VmRSS");
    std::fs::write("/proc/self/clear_refs", "5").expect("our own");
    let mut tasks = tokio::task::JoinSet::new();
    for (blob, diff_id) in layers {
        let store = store.clone();
        tasks.spawn(async move { store.layers().unpack(&blob[..], &descriptor(&blob), &diff_id, |_| ()).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic").expect("unpacked");
    }
    let grown = memory("VmHWM") - before;
    assert!(grown < 48 << 10, "{grown} KiB for {LAYERS} layers, whose windows are 32 MiB each");
}

#[tokio::test]
async fn row_21_a_window_that_would_take_too_much_memory_is_refused_with_words() {
    if !in_node("security::row_21_a_window_that_would_take_too_much_memory_is_refused_with_words") {
        return;
    }
    let (scratch, tar) = (Scratch::new("window"), Layer::new().file("f", "x").tar());
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
    encoder.window_log(26).expect("a window");
    encoder.write_all(&tar).and_then(|()| encoder.flush()).expect("memory");
    let blob = encoder.finish().expect("a frame");
    let unpacked = scratch.store().layers().unpack(&blob[..], &descriptor(&blob), &sha256(&tar), |_| ()).await;
    let error = unpacked.expect_err("refused");
    assert_eq!(error.kind, ImageErrorKind::BadImage);
    assert!(error.message.contains("without --long"), "{error}");
    assert!(scratch.leftovers().is_empty());
}

/// In KiB, of this process.
fn memory(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("our own");
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).expect("the kernel counts");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
async fn row_21_sparse_files_keep_their_holes() {
    if !in_node("security::row_21_sparse_files_keep_their_holes") {
        return;
    }
    let sparse = [
        ("GNU.sparse.major", &b"0"[..]),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.size", b"10000000"),
        ("GNU.sparse.map", b"0,1,5000000,2"),
    ];
    attack("holes", &Layer::new().pax(&sparse).file("f", "abc").tar(), |result| {
        let content = std::fs::read(result.expect("fits").join("real")).expect("made");
        assert_eq!(
            (content.len(), content[0], content[1], &content[5_000_000..5_000_002]),
            (10_000_000, b'a', 0, &b"bc"[..])
        );
    })
    .await;
    let overlapping = [sparse[0], sparse[1], sparse[3], ("GNU.sparse.map", b"0,2,1,1")];
    attack("overlap", &Layer::new().pax(&overlapping).file("f", "abc").tar(), refused).await;
}

#[tokio::test]
async fn owners_that_are_no_ids_are_refused() {
    if !in_node("security::owners_that_are_no_ids_are_refused") {
        return;
    }
    for id in [&b"4294967295"[..], b"4294967296", b"18446744073709551615", b"-1"] {
        attack("pax-id", &Layer::new().pax(&[("uid", id)]).file("f", "x").tar(), refused).await;
        attack("pax-id", &Layer::new().pax(&[("gid", id)]).dir("f").tar(), refused).await;
    }
    let negative = Layer::new().raw(b'0', b"f", b"", b"x", |h| h.as_old_mut().uid = [0xff; 8]).tar();
    attack("negative", &negative, refused).await;
    if in_user_namespace() {
        attack("unmapped", &Layer::new().pax(&[("uid", b"3000000")]).file("f", "x").tar(), |result| {
            assert!(result.expect_err("unmapped").message.contains("not mapped"));
        })
        .await;
    }
}

#[tokio::test]
async fn row_31_labels_of_an_image_are_shown_and_mean_nothing() {
    if !in_node("security::row_31_labels_of_an_image_are_shown_and_mean_nothing") {
        return;
    }
    let scratch = Scratch::new("labels");
    let store = scratch.store();
    let tar = Layer::new().file("f", "f").tar();
    unpack(&store, &tar).await.expect("unpacked");
    let labels = ["io.cri-containerd.pinned", "io.kubernetes.container.name", "cricket.pinned", "pinned"];
    let labels: serde_json::Map<_, _> = labels.iter().map(|key| ((*key).to_owned(), "pinned".into())).collect();
    let mut config: serde_json::Value = serde_json::from_slice(&config(&[tar])).expect("JSON");
    config["config"]["Labels"] = labels.into();
    let names = crate::image::store::ImageNames::default();
    let image = store.commit_image(config.to_string().into_bytes(), None, names).await.expect("committed");
    assert_eq!((image.config.labels.len(), image.pinned), (4, false));
    drop(store);
    let (removed, _) = scratch.images().await.prune(false).await.expect("pruned");
    assert_eq!(removed.len(), 1);
}
