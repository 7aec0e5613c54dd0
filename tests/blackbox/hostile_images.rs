//! Images that were made to harm whoever runs them: a clear error or a harmless container, and nothing outside touched.
//! Numbers in names are those of the attacks in SPECIFICATION.md.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::node::{Node, fail, image_of, succeed, text};

/// A program that needs nothing else in its root.
const BUSYBOX: &str = "/bin/busybox";
/// Long enough for a container on a busy machine, far too short for reading without end.
const SOON: Duration = Duration::from_secs(30);
/// What an image's account file says when it is honest.
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n";

/// An entry: kind, path, target of a link, content.
type Entry<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

/// A root that runs, with these entries besides.
fn root_with(entries: &[Entry<'_>]) -> Vec<u8> {
    let busybox = std::fs::read(BUSYBOX).expect("Debian's busybox-static");
    let mut tar = Builder::new(Vec::new());
    let mut add = |(kind, path, link, bytes): Entry<'_>, mode: u32| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        if kind == EntryType::Symlink {
            header.set_link_name(link).expect("short enough");
        }
        tar.append_data(&mut header, path, bytes).expect("in memory");
    };
    add((EntryType::Regular, "bin/busybox", "", &busybox), 0o755);
    entries.iter().for_each(|entry| add(*entry, if entry.0 == EntryType::Directory { 0o755 } else { 0o644 }));
    tar.into_inner().expect("in memory")
}

/// Loads an image and answers its name.
fn load(node: &Node, what: &str, entries: &[Entry<'_>], config: &Value) -> String {
    let name = format!("hostile.test/{what}:1");
    let file = node.dir.join("hostile.tar");
    std::fs::write(&file, image_of(&name, &[root_with(entries)], config)).expect("a file of ours");
    succeed(node.cricket(["image", "load"]).arg(&file));
    name
}

/// A directory that no image may touch.
fn outside(node: &Node) -> std::path::PathBuf {
    let outside = node.dir.join("outside");
    std::fs::create_dir(&outside).expect("a directory of ours");
    std::fs::write(outside.join("kept"), "untouched").expect("a file of ours");
    outside
}

fn assert_untouched(outside: &Path, what: &str) {
    let names: Vec<_> = std::fs::read_dir(outside).expect("ours").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["kept"], "{what}");
    assert_eq!(std::fs::read_to_string(outside.join("kept")).expect("ours"), "untouched", "{what}");
}

#[tokio::test]
async fn rows_7_8_12_and_13_links_of_an_image_lead_the_runtime_nowhere() {
    let node = Node::start().await;
    let outside = outside(&node);
    let target = outside.display().to_string();
    for (row, path) in [("row-7-proc", "proc"), ("row-7-sys", "sys"), ("row-8-dev", "dev")] {
        let name = load(&node, row, &[(EntryType::Symlink, path, &target, b"")], &json!({}));
        let (_, said) = fail(&mut node.cricket(["run", "--rm", &name, BUSYBOX, "true"]));
        assert!(said.contains(&format!("/{path}")), "{row}: {said}");
        assert_untouched(&outside, row);
    }
    let climbing = format!("/../../../../../../../..{target}");
    for (row, entries, config) in [
        ("row-12-etc", vec![(EntryType::Symlink, "etc", target.as_str(), &b""[..])], json!({})),
        ("row-13-volume", vec![], json!({"Volumes": {climbing.as_str(): {}}})),
        ("workdir", vec![], json!({"WorkingDir": climbing})),
    ] {
        let name = load(&node, row, &entries, &config);
        // Whether it runs or not: what counts is that nothing outside was touched.
        let _ = node.cricket(["run", "--rm", &name, BUSYBOX, "true"]).output().expect("our client");
        assert_untouched(&outside, row);
    }
    node.stop_and_account().await;
}

#[tokio::test]
async fn row_29_an_account_file_that_is_none_is_not_read_without_end() {
    let node = Node::start().await;
    let config = json!({"User": "somebody"});
    // Five million bytes of comment: more than any account file has.
    let huge = vec![b'#'; 5 << 20];
    for (what, entry) in [
        ("pipe", (EntryType::Fifo, "etc/passwd", "", &b""[..])),
        ("zeros", (EntryType::Symlink, "etc/passwd", "/dev/zero", b"")),
        ("proc", (EntryType::Symlink, "etc/passwd", "/proc/self/mem", b"")),
        ("directory", (EntryType::Directory, "etc/passwd", "", b"")),
        ("huge", (EntryType::Regular, "etc/passwd", "", &huge)),
    ] {
        let name = load(&node, what, &[entry], &config);
        let begun = Instant::now();
        let (_, said) = fail(&mut node.cricket(["run", "--rm", &name, BUSYBOX, "true"]));
        assert!(begun.elapsed() < SOON, "{what} took {:?}", begun.elapsed());
        assert!(said.contains("somebody") || said.contains("/etc/passwd"), "{what}: {said}");
    }
    node.stop_and_account().await;
}

#[tokio::test]
async fn rows_30_and_31_words_of_an_image_are_words() {
    let node = Node::start().await;
    let planted = "HOME=/\nplanted::0:0::/:/bin/sh";
    let labels =
        ["io.kubernetes.pod.name", "io.kubernetes.pod.uid", "io.cri-containerd.kind", "cricket.pod", "cricket"];
    let labels: serde_json::Map<_, _> = labels.iter().map(|label| ((*label).to_owned(), "planted".into())).collect();
    let config = json!({"Env": [planted], "User": "4321", "Labels": labels});
    let name = load(&node, "words", &[(EntryType::Regular, "etc/passwd", "", PASSWD)], &config);
    let output = succeed(&mut node.cricket(["run", "--rm", &name, BUSYBOX, "cat", "/etc/passwd"]));
    assert!(!text(&output.stdout).contains("planted"), "{}", text(&output.stdout));
    succeed(&mut node.cricket(["run", "-d", "--name", "words", &name, BUSYBOX, "sleep", "1000"]));
    for list in ["ps", "pods"] {
        let listed = text(&succeed(&mut node.cricket([list, "--output", "json"])).stdout);
        assert!(listed.contains("words") && !listed.contains("planted"), "{listed}");
    }
    succeed(&mut node.cricket(["rm", "words"]));
    node.stop_and_account().await;
}

/// Says what it could do to cgroups, and where it believes to be.
const CGROUP_SCRIPT: &str = r#"
b=/bin/busybox
for file in $($b find /sys/fs/cgroup -type f); do ( echo 1 >"$file" ) 2>/dev/null && echo "written: $file"; done
for place in $($b find /sys/fs/cgroup -type d); do $b mkdir "$place/new" 2>/dev/null && echo "made: $place/new"; done
$b mount -o remount,rw,bind /sys/fs/cgroup 2>/dev/null && echo "remounted"
$b grep -v ':/$' /proc/self/cgroup && echo "outside is seen"
$b grep ' /sys/fs/cgroup' /proc/mounts | $b grep -v ' ro[, ]' && echo "a mount is writable"
echo "looked at $($b find /sys/fs/cgroup -type f | $b wc -l) files"
"#;

#[tokio::test]
async fn row_14_no_file_of_a_cgroup_can_be_written() {
    let node = Node::start().await;
    let name = load(&node, "cgroups", &[], &json!({}));
    let output = succeed(&mut node.cricket(["run", "--rm", &name, BUSYBOX, "sh", "-c", CGROUP_SCRIPT]));
    let said = text(&output.stdout);
    assert!(said.starts_with("looked at ") && said.lines().count() == 1, "{said}");
    // Without cgroups of version 2 there is nothing to be seen.
    assert!(crate::node::cgroups::base().is_none() || !said.starts_with("looked at 0 "), "{said}");
    node.stop_and_account().await;
}
