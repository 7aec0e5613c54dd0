//! The extractor against GNU tar, on trees of this machine's packages and on made-up corner cases: what tar packed is
//! unpacked by us, tar finds no difference, and the archive can be had again byte for byte.

use std::io::Read;
use std::path::Path;
use std::process::Command;

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
        setfattr -n user.note -v value plain/two 2>/dev/null || :"#;
    let done = Command::new("sh").args(["-ec", script]).current_dir(at).status().expect("sh");
    assert!(done.success(), "the corner cases can be made");
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
    let again = saved(&scratch.images().await, "gnu.test/a:1", Format::Docker).await;
    let mut files = tar::Archive::new(&again[..]);
    let same = files.entries().expect("a tar").any(|entry| {
        let mut bytes = Vec::new();
        entry.and_then(|mut entry| entry.read_to_end(&mut bytes)).is_ok() && bytes == tar
    });
    assert!(same, "{name}: the archive can be had again");
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
        ("pax", &["--format=posix", "--xattrs"]),
        ("gnu-sparse", &["--format=gnu", "--sparse"]),
        ("pax-sparse", &["--format=posix", "--sparse", "--xattrs"]),
        ("pax-sparse-0", &["--format=posix", "--sparse", "--sparse-version=0.1"]),
        ("old-blocks", &["--format=gnu", "--blocking-factor=100"]),
    ] {
        compare(name, pack(&corners.0, &["."], options)).await;
    }
}
