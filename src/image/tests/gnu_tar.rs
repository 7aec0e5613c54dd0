//! The extractor against GNU tar, on trees of this machine's packages and on made-up corner cases: what tar packed is
//! unpacked by us, tar finds no difference, and the archive can be had again byte for byte.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};

use super::support::*;
use crate::image::archive::save::Format;
use crate::image::tests::saving::saved;

/// Trees of Debian packages that everybody may read, whichever are here.
const TREES: [&str; 6] = [
    "etc/alternatives",
    "etc/ssl/certs",
    "usr/share/perl",
    "usr/share/perl5",
    "usr/share/zoneinfo",
    "var/lib/dpkg/info",
];

/// What trees seldom have.
fn corner_cases(at: &Path) {
    let script = r#"
        mkdir -p plain empty sticky "$(printf 'd%.0s' $(seq 120))/$(printf 'e%.0s' $(seq 150))"
        echo one >plain/one; ln plain/one plain/two; ln -s one plain/link; ln -s /absolute/nowhere dangling
        echo deep >"$(printf 'd%.0s' $(seq 120))/$(printf 'e%.0s' $(seq 150))/file"
        mkfifo plain/pipe; chmod 4755 plain/one; chmod 1777 sticky; chmod 000 empty
        printf 'odd' >"$(printf 'sp ace\tand\nline')"; printf 'latin' >"$(printf 'caf\351')"
        truncate -s 10M holes; printf x | dd of=holes bs=1 seek=5000000 conv=notrunc 2>/dev/null
        : >nothing; chown 7:9 nothing; chown -h 8:10 dangling
        touch -h -d '1999-12-31 23:59:59.123456789 UTC' plain/link nothing plain
        printf x >able"#;
    let done = Command::new("sh").args(["-ec", script]).current_dir(at).status().expect("sh");
    assert!(done.success(), "the corner cases can be made");
    // CAP_NET_RAW, as ping has it.
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (path, name, value) in [
        ("plain/two", "user.note", &b"value"[..]),
        ("sticky", "user.binary", b"a\0b\n"),
        ("able", "security.capability", capability),
    ] {
        lsetxattr(at.join(path), name, value, XattrFlags::empty()).expect("this file system has attributes");
    }
}

fn pack(from: &Path, names: &[&str], options: &[&str]) -> Vec<u8> {
    let mut command = Command::new("tar");
    command.args(["--create", "--numeric-owner", "--file=-", "--directory"]).arg(from).args(options).args(names);
    let output = command.output().expect("tar");
    assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

async fn compare(name: &str, tar: Vec<u8>) {
    let scratch = Scratch::new(&format!("gnu-{name}"));
    let image = commit(&scratch.store(), std::slice::from_ref(&tar), "gnu.test/a:1").await;
    let tree = scratch.store().layers().tree(&image.layers[0].parse().expect("a digest"));
    let file = scratch.0.join("layer.tar");
    std::fs::write(&file, &tar).expect("written");
    let mut diff = Command::new("tar");
    diff.args(["--compare", "--numeric-owner", "--xattrs", "--file"]).arg(&file).arg("--directory").arg(&tree);
    let output = diff.output().expect("tar");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{name}: {said}");
    if name.contains("pax") {
        compare_with_extracted(name, &file, &tree, &scratch.0.join("extracted"));
    }
    let again = saved(&scratch.images().await, "gnu.test/a:1", Format::Docker).await;
    let mut files = tar::Archive::new(&again[..]);
    let same = files.entries().expect("a tar").any(|entry| {
        let mut bytes = Vec::new();
        entry.and_then(|mut entry| entry.read_to_end(&mut bytes)).is_ok() && bytes == tar
    });
    assert!(same, "{name}: the archive can be had again");
}

/// All that stat(2) and the attributes say of each path but what no archive has.
fn described(root: &Path, at: &Path, into: &mut BTreeMap<PathBuf, String>) {
    let metadata = at.symlink_metadata().expect("there");
    let mut names = vec![0; 64 << 10];
    let length = llistxattr(at, &mut names[..]).expect("attributes");
    let mut attributes: Vec<_> = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    attributes.sort_unstable();
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let length = lgetxattr(at, name, &mut value[..]).expect("an attribute");
        value.truncate(length);
        value
    };
    let attributes: Vec<_> = attributes.iter().map(|name| (String::from_utf8_lossy(name), value(name))).collect();
    let link = std::fs::read_link(at).ok();
    let size = if metadata.is_file() { metadata.len() } else { 0 };
    let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
    let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
    let time = (metadata.mtime(), metadata.mtime_nsec());
    let line = format!("{mode:o} {uid}:{gid} {size} {links} {time:?} {link:?} {attributes:?}");
    into.insert(at.strip_prefix(root).expect("below").to_owned(), line);
    if metadata.is_dir() {
        for entry in std::fs::read_dir(at).expect("listed") {
            described(root, &entry.expect("an entry").path(), into);
        }
    }
}

/// What tar(1) makes of the archive, attributes and owners too.
fn compare_with_extracted(name: &str, archive: &Path, tree: &Path, extracted: &Path) {
    std::fs::create_dir(extracted).expect("made");
    let mut tar = Command::new("tar");
    tar.args([
        "--extract",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--same-owner",
        "--preserve-permissions",
    ]);
    let done = tar.arg("--file").arg(archive).arg("--directory").arg(extracted).status().expect("tar");
    assert!(done.success(), "{name}");
    let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
    described(tree, tree, &mut ours);
    described(extracted, extracted, &mut theirs);
    if !name.starts_with("trees") {
        let able = &theirs[Path::new("able")];
        assert!(able.contains("security.capability"), "{able}");
    }
    // The root directory, and the parents of packed trees, are in no archive.
    for path in ["", "etc", "usr", "usr/share", "var", "var/lib", "etc/ssl", "var/lib/dpkg"] {
        if name.starts_with("trees") {
            ours.remove(Path::new(path));
            theirs.remove(Path::new(path));
        }
    }
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
    for (path, line) in &theirs {
        assert_eq!(&ours[path], line, "{name}: {}", path.display());
    }
}

#[tokio::test]
async fn what_gnu_tar_packs_is_unpacked_as_gnu_tar_would() {
    if !in_node("gnu_tar::what_gnu_tar_packs_is_unpacked_as_gnu_tar_would") {
        return;
    }
    let root = Path::new("/");
    let trees: Vec<_> = TREES.into_iter().filter(|tree| root.join(tree).exists()).collect();
    compare("trees", pack(root, &trees, &["--format=gnu"])).await;
    compare("trees-pax", pack(root, &trees, &["--format=posix", "--xattrs"])).await;
    let corners = Scratch::new("gnu-corners");
    corner_cases(&corners.0);
    for (name, options) in [
        ("gnu", &["--format=gnu"][..]),
        ("pax", &["--format=posix", "--xattrs", "--xattrs-include=*"]),
        ("gnu-sparse", &["--format=gnu", "--sparse"]),
        ("pax-sparse", &["--format=posix", "--sparse", "--xattrs", "--xattrs-include=*"]),
        ("pax-sparse-0", &["--format=posix", "--sparse", "--sparse-version=0.1", "--xattrs", "--xattrs-include=*"]),
        ("old-blocks", &["--format=gnu", "--blocking-factor=100"]),
    ] {
        compare(name, pack(&corners.0, &["."], options)).await;
    }
}
