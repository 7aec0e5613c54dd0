//! Snapshots on real overlay mounts, seen through their detached mounts.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::support::*;
use crate::image::{ImageErrorKind, ImageOptions, Images, MountPoint, Owners, Writes};
use crate::sys::owners::IdRange;

const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

async fn three_layers(scratch: &Scratch) -> std::sync::Arc<crate::image::Image> {
    let lower = Layer::new()
        .raw(b'5', b"./", b"", b"", |h| h.set_mode(0o750))
        .dir("etc")
        .file("etc/a", "lower")
        .file("etc/gone", "lower")
        .dir("opaque")
        .file("opaque/hidden", "lower")
        .dir("again")
        .file("again/hidden", "lower")
        .entry(b'0', "su", "", 0o4755, b"x")
        .symlink("run", "var/run")
        .tar();
    let middle = Layer::new()
        .dir("etc")
        .file("etc/.wh.gone", "")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "middle")
        .file(".wh.again", "")
        .dir("again")
        .file("again/new", "middle")
        .tar();
    let upper = Layer::new().file("etc/a", "upper").tar();
    commit(&scratch.store(), &[lower, middle, upper], "docker.io/library/x:1").await
}

#[tokio::test]
async fn a_snapshot_shows_the_layers_and_takes_writes() {
    if !in_node("snapshots::a_snapshot_shows_the_layers_and_takes_writes") {
        return;
    }
    let scratch = Scratch::new("snapshot");
    let image = three_layers(&scratch).await;
    let images = scratch.images().await;
    assert!(images.has_overlay());
    let snapshot = images.snapshot(KEY, &image, false).await.expect("a snapshot");
    let read = |path: &str| std::fs::read_to_string(inside(&snapshot, path)).ok();
    assert_eq!(read("etc/a").as_deref(), Some("upper"));
    assert_eq!((read("etc/gone"), read("opaque/hidden"), read("again/hidden")), (None, None, None));
    assert!(!inside(&snapshot, "etc/gone").exists());
    assert_eq!((read("opaque/new").as_deref(), read("again/new").as_deref()), (Some("middle"), Some("middle")));
    let su = std::fs::metadata(inside(&snapshot, "su")).expect("su");
    assert_eq!(su.mode() & 0o7777, 0o4755);
    let root = std::fs::metadata(inside(&snapshot, ".")).expect("the root");
    assert_eq!(root.permissions().mode() & 0o7777, 0o750);

    std::fs::write(inside(&snapshot, "etc/new"), vec![1; 100_000]).expect("written");
    std::fs::remove_file(inside(&snapshot, "etc/a")).expect("removed");
    let usage = images.snapshot_usage(KEY).await.expect("usage");
    assert!((100_000..200_000).contains(&usage.bytes) && usage.inodes >= 4, "{usage:?}");
    drop(snapshot);

    // Found again, also after a restart, with what was written.
    let images = scratch.images().await;
    let snapshot = images.snapshot(KEY, &image, false).await.expect("the same");
    assert!(inside(&snapshot, "etc/new").exists() && !inside(&snapshot, "etc/a").exists());
    drop(snapshot);
    assert_eq!(images.snapshot(KEY, &image, true).await.expect_err("differs").kind, ImageErrorKind::Busy);
    images.remove_snapshot(KEY).await.expect("removed");
    images.remove_snapshot(KEY).await.expect("again is fine");
    assert_eq!(std::fs::read_dir(scratch.options().root.join("snapshots")).expect("listed").count(), 0);
}

#[tokio::test]
async fn places_for_mounts_are_there_without_a_write_and_not_in_a_volume() {
    if !in_node("snapshots::places_for_mounts_are_there_without_a_write_and_not_in_a_volume") {
        return;
    }
    let scratch = Scratch::new("places");
    // Its own /etc is kept, and what it says is no directory is none.
    let own = Layer::new().raw(b'5', b"etc/", b"", b"", |h| h.set_mode(0o711)).symlink("dev", "elsewhere").tar();
    let image = commit(&scratch.store(), &[own], "docker.io/library/x:1").await;
    let images = scratch.images().await;
    let snapshot = images.snapshot(KEY, &image, false).await.expect("a snapshot");
    for path in ["proc", "sys", "etc/hostname", "etc/hosts", "etc/resolv.conf"] {
        let seen = std::fs::metadata(inside(&snapshot, path)).expect(path);
        assert_eq!((seen.uid(), seen.is_dir()), (0, !path.contains('/')), "{path}");
    }
    assert_eq!(std::fs::metadata(inside(&snapshot, "etc")).expect("etc").mode() & 0o7777, 0o711);
    assert!(std::fs::symlink_metadata(inside(&snapshot, "dev")).expect("dev").is_symlink());
    let upper = snapshot.upper.clone().expect("it is written to");
    assert_eq!(std::fs::read_dir(upper).expect("listed").count(), 0);
    let volume = images.snapshot_for("volume", &image, Writes::None(Vec::new()), None).await.expect("a volume");
    let seen = std::fs::read_dir(inside(&volume, ".")).expect("listed").flatten().map(|entry| entry.file_name());
    assert_eq!(seen.collect::<HashSet<_>>(), ["etc", "dev"].map(Into::into).into());
    assert!(!inside(&volume, "etc/hosts").exists());
}

/// A user namespace with these ids.
fn owners(ids: IdRange) -> Owners {
    let mut child = Command::new("unshare")
        .args(["--user", "sh", "-c", "echo; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    BufReader::new(child.stdout.as_mut().expect("its output")).read_line(&mut String::new()).expect("it is there");
    for map in ["uid_map", "gid_map"] {
        let line = format!("0 {} {}", ids.first, ids.length);
        std::fs::write(format!("/proc/{}/{map}", child.id()), line).expect("mapped");
    }
    let namespace = std::fs::File::open(format!("/proc/{}/ns/user", child.id())).expect("opened");
    drop(child.stdin.take());
    child.wait().expect("its end");
    Owners { user_namespace: Arc::new(namespace.into()), ids }
}

/// With idmapped mounts where this is root, with a copy where it is not.
#[tokio::test]
async fn a_snapshot_for_a_user_namespace_belongs_to_its_users() {
    if !in_node("snapshots::a_snapshot_for_a_user_namespace_belongs_to_its_users") {
        return;
    }
    let scratch = Scratch::new("owners");
    let layer = Layer::new()
        .raw(b'5', b"./", b"", b"", |h| h.set_mode(0o750))
        .dir("etc")
        .raw(b'0', b"seven", b"", b"x", |h| {
            h.set_uid(7);
            h.set_gid(8);
            h.set_mode(0o4755);
        })
        .file("hidden", "x")
        .tar();
    let above = Layer::new().file(".wh.hidden", "").tar();
    let image = commit(&scratch.store(), &[layer, above], "docker.io/library/x:1").await;
    let images = scratch.images().await;
    let owners = owners(IdRange { first: 2000, length: 1000 });
    for (key, writes) in [(KEY, Writes::Kept), ("sealed", Writes::None(Vec::new()))] {
        let snapshot = images.snapshot_for(key, &image, writes, Some(owners.clone())).await.expect(key);
        for (path, uid, gid, mode) in
            [(".", 2000, 2000, 0o750), ("etc", 2000, 2000, 0o755), ("seven", 2007, 2008, 0o4755)]
        {
            let seen = std::fs::metadata(inside(&snapshot, path)).expect(path);
            assert_eq!((seen.uid(), seen.gid(), seen.mode() & 0o7777), (uid, gid, mode), "{key} {path}");
        }
        assert!(!inside(&snapshot, "hidden").exists());
    }
    drop(images);
    let images = scratch.images().await;
    let again = images.snapshot_for(KEY, &image, Writes::Kept, Some(owners)).await.expect("found again");
    assert_eq!(std::fs::metadata(inside(&again, "seven")).expect("seven").uid(), 2007);
    assert_eq!(images.snapshot(KEY, &image, false).await.expect_err("another's").kind, ImageErrorKind::Busy);
    let plain = images.snapshot("plain", &image, false).await.expect("a snapshot");
    assert_eq!(std::fs::metadata(inside(&plain, "seven")).expect("seven").uid(), 7, "the layer is as it was");
}

#[tokio::test]
async fn a_read_only_snapshot_has_its_mount_points_and_takes_no_writes() {
    if !in_node("snapshots::a_read_only_snapshot_has_its_mount_points_and_takes_no_writes") {
        return;
    }
    let scratch = Scratch::new("read-only");
    let image = three_layers(&scratch).await;
    let images = scratch.images().await;
    let point = |path: &str, is_directory| MountPoint { path: path.to_owned(), is_directory };
    let points = vec![
        point("/etc/hosts", false),
        point("/etc/a", false),
        point("/var/run/", true),
        point("/run/secrets/kubernetes.io", true),
        point("/", true),
    ];
    let snapshot = images.read_only_snapshot(KEY, &image, points).await.expect("a snapshot");
    assert!(snapshot.upper.is_none());
    let write = std::fs::write(inside(&snapshot, "etc/new"), "x").expect_err("read-only");
    assert_eq!(write.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(std::fs::read_to_string(inside(&snapshot, "etc/hosts")).expect("there"), "");
    assert_eq!(std::fs::read_to_string(inside(&snapshot, "etc/a")).expect("there"), "upper");
    assert!(inside(&snapshot, "var/run/secrets/kubernetes.io").is_dir());
    assert_eq!(std::fs::metadata(inside(&snapshot, ".")).expect("root").permissions().mode() & 0o7777, 0o750);

    // One that the spec makes read-only takes mount points until then.
    let later = images.snapshot("later", &image, true).await.expect("a snapshot");
    assert!(later.upper.is_none());
    std::fs::create_dir_all(inside(&later, "secrets/kubernetes.io")).expect("made");
}

#[tokio::test]
async fn images_of_no_one_and_five_hundred_layers_are_mounted() {
    if !in_node("snapshots::images_of_no_one_and_five_hundred_layers_are_mounted") {
        return;
    }
    for count in [0, 1, 497] {
        let scratch = Scratch::new(&format!("count-{count}"));
        let store = scratch.store();
        let layers: Vec<_> = (0..count).map(|n| Layer::new().file(&format!("f{n}"), "x").tar()).collect();
        let image = commit(&store, &layers, "docker.io/library/x:1").await;
        let images = scratch.images().await;
        for read_only in [false, true] {
            let key = format!("{read_only}");
            let snapshot = match read_only {
                false => images.snapshot(&key, &image, false).await.expect(&key),
                true => images.read_only_snapshot(&key, &image, Vec::new()).await.expect(&key),
            };
            let places = if read_only { 0 } else { ["dev", "etc", "proc", "sys"].len() };
            assert_eq!(std::fs::read_dir(inside(&snapshot, ".")).expect("listed").count(), count + places);
        }
    }
}

#[tokio::test]
async fn without_overlays_a_copy_shows_the_same() {
    if !in_node("snapshots::without_overlays_a_copy_shows_the_same") {
        return;
    }
    let scratch = Scratch::new("copy");
    let image = three_layers(&scratch).await;
    let images = scratch.images().await;
    // As a volume: without places for mounts.
    let snapshot = images.read_only_snapshot(KEY, &image, Vec::new()).await.expect("a snapshot");
    let store = scratch.store();
    let trees = image.layers.iter().map(|id| store.layers().tree(&id.parse().expect("a digest"))).collect();
    let copy = scratch.0.join("copy");
    std::fs::create_dir(&copy).expect("made");
    crate::image::snapshot::copy::copy_layers(trees, &copy, None).expect("copied");
    let expected = listed(inside(&snapshot, "."));
    assert!(expected.len() >= 8, "{expected:?}");
    assert_eq!(listed(copy.clone()), expected);
    assert_eq!(std::fs::read_to_string(copy.join("etc/a")).expect("read"), "upper");
}

/// What find(1) says of a tree.
fn listed(root: std::path::PathBuf) -> Vec<String> {
    let find = std::process::Command::new("find")
        .current_dir(root)
        .args([".", "-mindepth", "1", "-printf", "%P %y %m %U %l\\n"])
        .output()
        .expect("find(1) is there");
    let mut lines: Vec<_> = String::from_utf8(find.stdout).expect("text").lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// An overlay takes neither another overlay's upper directory nor whiteouts.
#[tokio::test]
async fn on_an_overlay_images_that_delete_files_are_unpacked_and_copied() {
    if !in_mount_namespace("snapshots::on_an_overlay_images_that_delete_files_are_unpacked_and_copied") {
        return;
    }
    let good = Scratch::new("below-good");
    let expected = {
        let image = three_layers(&good).await;
        let volume = good.images().await.read_only_snapshot(KEY, &image, Vec::new()).await;
        listed(inside(&volume.expect("a snapshot"), "."))
    };
    let (below, scratch) = (Scratch::new("below"), Scratch::new("on-overlay"));
    mount_overlay_at(&scratch, &below);
    {
        let image = three_layers(&scratch).await;
        let images = scratch.images().await;
        assert!(!images.has_overlay(), "an overlay on an overlay");
        let snapshot = images.snapshot(KEY, &image, false).await.expect("a snapshot");
        assert_eq!(listed(inside(&snapshot, ".")), expected);
        // Known again after a restart.
        drop((snapshot, images));
        let images = scratch.images().await;
        images.snapshot(KEY, &image, false).await.expect("the same");
        images.remove_snapshot(KEY).await.expect("removed");
        // Names beside a whiteout's file: nothing links to it, and what comes again is there.
        let tree = |layer: Layer| {
            let store = scratch.store();
            async move { unpack(&store, &layer.tar()).await }
        };
        let link = Layer::new().file("etc/.wh.gone", "").hard_link("etc/x", "etc/.wh.gone");
        tree(link).await.expect_err("a link to a whiteout");
        let again = tree(Layer::new().file(".wh.a", "").file("a", "x").file(".wh.b", "").file("b/c", "y")).await;
        let found = listed(again.expect("unpacked"));
        let names: Vec<_> = found.iter().map(|line| line.split(' ').next().unwrap_or_default()).collect();
        assert_eq!(names, ["a", "b", "b/.wh..wh..opq", "b/c"]);
    }
    unmount(&scratch);
}

/// Puts the directory on an overlay: on none other can one be mounted.
fn mount_overlay_at(scratch: &Scratch, below: &Scratch) {
    let dirs = ["lower", "upper", "work"].map(|name| below.0.join(name));
    dirs.iter().for_each(|directory| std::fs::create_dir(directory).expect("made"));
    let [lower, upper, work] = dirs.map(|path| path.display().to_string());
    let option = if in_user_namespace() { ",userxattr" } else { "" };
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}{option}");
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&scratch.0);
    assert!(mount.status().expect("mount(8)").success());
}

fn unmount(scratch: &Scratch) {
    assert!(std::process::Command::new("umount").arg(&scratch.0).status().expect("umount(8)").success());
}

/// Programs of the name that run below this process.
fn children(name: &str) -> usize {
    let threads = std::fs::read_dir("/proc/self/task").expect("our own").flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let pids: Vec<String> = lists.flat_map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    let is_named =
        |pid: &&String| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
    pids.iter().filter(is_named).count()
}

#[tokio::test]
async fn where_the_kernel_stacks_no_layers_fuse_overlayfs_does_and_ends_with_the_mount() {
    if !in_mount_namespace("snapshots::where_the_kernel_stacks_no_layers_fuse_overlayfs_does_and_ends_with_the_mount") {
        return;
    }
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        eprintln!("not tried: /dev/fuse: {error}");
        return;
    }
    let good = Scratch::new("fuse-good");
    let expected = {
        let image = three_layers(&good).await;
        listed(inside(&good.images().await.snapshot(KEY, &image, false).await.expect("a snapshot"), "."))
    };
    let (below, scratch) = (Scratch::new("fuse-below"), Scratch::new("fuse-on-overlay"));
    mount_overlay_at(&scratch, &below);
    {
        let program = Some("fuse-overlayfs".into());
        let open = || Images::open(ImageOptions { fuse_overlayfs: program.clone(), ..scratch.options() });
        let image = three_layers(&scratch).await;
        let images = open().await.expect("the service");
        assert!(!images.has_overlay() && images.has_fuse(), "the program works here");
        let snapshot = images.snapshot(KEY, &image, false).await.expect("a snapshot");
        assert_eq!(listed(inside(&snapshot, ".")), expected);
        std::fs::write(inside(&snapshot, "etc/written"), "x").expect("written");
        let upper = snapshot.upper.clone().expect("it can be written");
        assert_eq!(std::fs::read_to_string(upper.join("etc/written")).expect("in the upper layer only"), "x");
        assert!(!scratch.0.join("images/snapshots").join(KEY).join("rootfs").exists(), "nothing is copied");
        // The mount goes on without the service, is found again, and ends with its last holder.
        drop(images);
        assert_eq!(std::fs::read_to_string(inside(&snapshot, "etc/written")).expect("read"), "x");
        drop(snapshot);
        let images = open().await.expect("the service");
        let again = images.snapshot(KEY, &image, false).await.expect("the same");
        assert_eq!(std::fs::read_to_string(inside(&again, "etc/written")).expect("read"), "x");
        let point = MountPoint { path: "/new/point".to_owned(), is_directory: true };
        let sealed = images.read_only_snapshot("sealed", &image, vec![point]).await.expect("a snapshot");
        assert!(inside(&sealed, "new/point").is_dir());
        assert!(std::fs::write(inside(&sealed, "etc/written"), "x").is_err(), "it is read-only");
        drop((again, sealed));
        let begun = std::time::Instant::now();
        while children("fuse-overlayfs") > 0 {
            assert!(begun.elapsed() < std::time::Duration::from_secs(20), "the program ends with its mounts");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        images.remove_snapshot(KEY).await.expect("removed");
        // A program that is none, or not there, is not used.
        for none in ["/bin/true", "/nowhere/fuse-overlayfs"] {
            let options = ImageOptions { fuse_overlayfs: Some(none.into()), ..scratch.options() };
            assert!(!Images::open(options).await.expect("the service").has_fuse(), "{none}");
        }
    }
    unmount(&scratch);
}

/// An ordinary user who may open /dev/fuse, which is root's on many machines: root gives nobody one, in mounts of its
/// own.
#[test]
fn fuse_overlayfs_stacks_layers_for_an_ordinary_user_too() {
    const TEST: &str = "where_the_kernel_stacks_no_layers_fuse_overlayfs_does_and_ends_with_the_mount";
    const GIVEN: &str = "mount -t tmpfs tmpfs /mnt && mknod -m 666 /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse \
        && setpriv --reuid=65534 --regid=65534 --clear-groups test -x \"$0\" -a -w /dev/fuse || exit 77; \
        exec setpriv --reuid=65534 --regid=65534 --clear-groups unshare --user --map-root-user --mount \"$0\" \"$@\"";
    if !rustix::process::geteuid().is_root() || in_user_namespace() {
        eprintln!("not tried again: the other test is an ordinary user's already");
        return;
    }
    let mut shell = std::process::Command::new("unshare");
    shell.env("CRICKET_TEST_IN_MOUNT_NAMESPACE", "yes").args(["--mount", "--propagation=private", "sh", "-c", GIVEN]);
    shell.arg(std::env::current_exe().expect("this program has a path"));
    let status = shell.args(["--exact", &format!("image::tests::snapshots::{TEST}")]).status().expect("unshare(1)");
    match status.code() {
        Some(77) => eprintln!("not tried: nobody cannot be given /dev/fuse here, or cannot run this program"),
        _ => assert!(status.success(), "{TEST} failed as an ordinary user"),
    }
}

/// The figure of ImageFsInfo is kept, never counted: here it is counted, by looking at every file.
#[tokio::test]
async fn the_usage_of_images_is_what_a_walk_finds() {
    if !in_node("snapshots::the_usage_of_images_is_what_a_walk_finds") {
        return;
    }
    let scratch = Scratch::new("usage");
    let big = "x".repeat(300_000);
    let odd = Layer::new()
        .file("a/b/c", &big)
        .dir("a")
        .dir("a/b")
        .hard_link("a/link", "a/b/c")
        .file("twice", &big)
        .file("twice", "small")
        .file(".wh.hidden", "")
        .dir("hidden")
        .file("d/e", &big)
        .entry(b'0', "d", "", 0o644, b"was a directory")
        .symlink("s", "a")
        .tar();
    commit(&scratch.store(), std::slice::from_ref(&odd), "docker.io/library/one:1").await;
    commit(&scratch.store(), &[odd, Layer::new().file("more", &big).tar()], "docker.io/library/two:1").await;
    three_layers(&scratch).await;
    let (usage, _) = scratch.images().await.usage().expect("usage");
    let (mut bytes, mut inodes) = (0, HashSet::new());
    let find = std::process::Command::new("find")
        .args([scratch.options().root.join("layers"), scratch.options().root.join("images")])
        .args(["-mindepth", "1", "-printf", "%i %k\\n"])
        .output()
        .expect("find(1) is there");
    for line in String::from_utf8(find.stdout).expect("text").lines() {
        let (inode, kilobytes) = line.split_once(' ').expect("two numbers");
        if inodes.insert(inode.to_owned()) {
            bytes += kilobytes.parse::<u64>().expect("a number") * 1024;
        }
    }
    assert_eq!(usage.inodes, inodes.len() as u64);
    // Where directories and small files take no block of their own, it is less.
    let blocks = inodes.len() as u64 * 4096;
    assert!(usage.bytes.abs_diff(bytes) <= blocks && usage.bytes >= bytes / 2, "{usage:?}, found {bytes}");
}

#[tokio::test]
async fn old_kernels_mount_with_one_option_string() {
    if !in_node("snapshots::old_kernels_mount_with_one_option_string") {
        return;
    }
    let scratch = Scratch::new("classic");
    let image = three_layers(&scratch).await;
    let store = scratch.store();
    let lower: Vec<_> =
        image.layers.iter().rev().map(|id| store.layers().tree(&id.parse().expect("a digest"))).collect();
    let overlay =
        crate::sys::overlay::Overlay { lower: &lower, upper: None, user_attributes: in_user_namespace(), owners: None };
    let snapshot = crate::image::Snapshot { mount: overlay.mount_classic().expect("mounted"), upper: None };
    assert_eq!(std::fs::read_to_string(inside(&snapshot, "etc/a")).expect("read"), "upper");
    assert!(!inside(&snapshot, "etc/gone").exists());
}

#[tokio::test]
async fn a_layer_that_occurs_twice_is_mounted_once() {
    if !in_node("snapshots::a_layer_that_occurs_twice_is_mounted_once") {
        return;
    }
    let scratch = Scratch::new("repeated");
    let one = Layer::new().file("a", "1").tar();
    let two = Layer::new().file("a", "2").file("b", "2").tar();
    let image = commit(&scratch.store(), &[one.clone(), two, one], "docker.io/library/x:1").await;
    let snapshot = scratch.images().await.snapshot(KEY, &image, false).await.expect("a snapshot");
    assert_eq!(std::fs::read_to_string(inside(&snapshot, "a")).expect("read"), "1");
    assert_eq!(std::fs::read_to_string(inside(&snapshot, "b")).expect("read"), "2");
}

#[tokio::test]
async fn layers_in_use_stay_until_the_snapshot_goes() {
    if !in_node("snapshots::layers_in_use_stay_until_the_snapshot_goes") {
        return;
    }
    let scratch = Scratch::new("in-use");
    let image = three_layers(&scratch).await;
    let images = scratch.images().await;
    let snapshot = images.snapshot(KEY, &image, false).await.expect("a snapshot");
    assert!(images.remove("x:1").await.expect("removed"));
    assert!(images.list().is_empty());
    assert_eq!(std::fs::read_to_string(inside(&snapshot, "etc/a")).expect("still there"), "upper");
    drop(snapshot);

    let images = scratch.images().await;
    images.retain_snapshots(&HashSet::from([KEY.to_owned()])).await.expect("kept");
    images.snapshot(KEY, &image, false).await.expect("layers are still there");
    images.retain_snapshots(&HashSet::new()).await.expect("removed");
    assert_eq!(std::fs::read_dir(scratch.options().root.join("layers")).expect("listed").count(), 0);
}

#[tokio::test]
async fn names_of_snapshots_are_no_paths() {
    if !in_node("snapshots::names_of_snapshots_are_no_paths") {
        return;
    }
    let scratch = Scratch::new("keys");
    let image = three_layers(&scratch).await;
    let images = scratch.images().await;
    for key in ["", ".", "..", "../layers", "a/b", ".temporary-1", "a\0", &"k".repeat(200)] {
        assert_eq!(images.snapshot(key, &image, false).await.expect_err(key).kind, ImageErrorKind::Invalid);
        assert_eq!(images.remove_snapshot(key).await.expect_err(key).kind, ImageErrorKind::Invalid);
    }
}
