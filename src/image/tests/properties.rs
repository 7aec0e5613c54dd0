//! Parsers of strangers' bytes, on good input that was damaged at random: they end, without a panic, with a value or an
//! error. What they say is tested elsewhere. And layers of hostile entries in any order: nothing outside is touched.
//! PROPTEST_CASES says how many are tried (256 each unless it does).

use std::io::{Read, Write};

use proptest::prelude::*;

use super::support::*;
use crate::image::config;
use crate::image::manifest::Manifest;
use crate::image::unpack::entries::Entries;
use crate::image::unpack::recipe::{Recorder, write_again};
use crate::image::unpack::stream::{Source, Wire};
use crate::image::unpack::{OpaqueMark, unpack};

/// Entries of a damaged tar; a good one has eight.
const ENTRIES_MAX: usize = 200;

fn good_tar() -> Vec<u8> {
    Layer::new()
        .dir("a/")
        .pax(&[("path", b"a/long"), ("size", b"5"), ("SCHILY.xattr.user.x", b"y"), ("mtime", b"1.5")])
        .file("short", "12345")
        .symlink("a/link", "../b")
        .hard_link("hard", "a/long")
        .raw(b'L', b"long", b"", &[b'n'; 300], |_| ())
        .file("n", "data")
        .raw(b'S', b"sparse", b"", &[1; 512], |header| {
            let bytes = header.as_mut_bytes();
            bytes[386..398].copy_from_slice(b"00000001000\0");
            bytes[398..410].copy_from_slice(b"00000001000\0");
            bytes[483..495].copy_from_slice(b"00000002000\0");
        })
        .tar()
}

/// Bytes that are replaced, and where it is cut.
fn damage() -> impl Strategy<Value = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)> {
    let places = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (places, prop::option::weighted(0.2, any::<prop::sample::Index>()))
}

fn damaged(mut bytes: Vec<u8>, damage: (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)) -> Vec<u8> {
    for (place, byte) in damage.0 {
        let at = place.index(bytes.len());
        bytes[at] = byte;
    }
    if let Some(end) = damage.1 {
        bytes.truncate(end.index(bytes.len()));
    }
    bytes
}

/// Header checksums that fit again, or nothing behind a changed header would ever be read.
fn with_checksums(mut tar: Vec<u8>) -> Vec<u8> {
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    tar
}

fn scratch_file(name: &str) -> std::fs::File {
    let path = std::env::temp_dir().join(format!("cricket-{name}-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.expect("a file in the temporary directory");
    std::fs::remove_file(path).expect("removed, and open");
    file
}

proptest! {
    #[test]
    fn row_18_a_damaged_tar_ends(damage in damage()) {
        let tar = with_checksums(damaged(good_tar(), damage));
        let mut entries = Entries::new(&tar[..]);
        let mut count = 0;
        while let Ok(Some(entry)) = entries.next_entry() {
            count += 1;
            prop_assert!(count < ENTRIES_MAX && entry.path.len() <= tar.len());
        }
    }

    #[test]
    fn a_damaged_manifest_or_config_ends(damage in damage()) {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 7},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": 7}],
        });
        let _ = Manifest::parse(&damaged(manifest.to_string().into_bytes(), damage.clone()), None);
        let config = serde_json::json!({
            "os": "linux", "config": {"User": "1:2", "Env": ["A=b"], "Volumes": {"/v": {}}, "WorkingDir": "/w"},
            "rootfs": {"diff_ids": [digest]},
        });
        let _ = config::validate(&damaged(config.to_string().into_bytes(), damage));
    }

    #[test]
    fn a_damaged_recipe_ends(damage in damage()) {
        let tar = good_tar();
        let file = scratch_file("recipe");
        let mut recorder = Recorder::new(&tar[..], file.try_clone().expect("a descriptor")).expect("a recorder");
        let mut head = [0; 512];
        recorder.read_exact(&mut head).expect("the first header");
        recorder.begin_file(b"a/none", 3, 512).expect("recorded");
        recorder.read_exact(&mut head).expect("a block");
        recorder.end_file();
        recorder.drain().expect("recorded");
        recorder.finish(true).expect("recorded");
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut &file).expect("a file");
        (&file).read_to_end(&mut bytes).expect("a file");
        let other = scratch_file("recipe-damaged");
        (&other).write_all(&damaged(bytes, damage)).expect("a file");
        std::io::Seek::rewind(&mut &other).expect("a file");
        let tree = std::fs::File::open(std::env::temp_dir()).expect("a directory");
        // The file is not there, so it is refused, unless the damage ends it before: whoever asks hashes what comes.
        let mut written = Vec::new();
        if write_again(other, tree.into(), &mut written).is_ok() {
            prop_assert!(written.len() < tar.len());
        }
    }
}

/// Names that lead up, out, through links and into whiteouts; the shorter the list, the oftener they meet.
const PARTS: [&str; 9] = ["a", "b", "up", "out", "..", ".wh.a", ".wh..wh..opq", ".wh.", "."];
const LINKS: [&str; 6] = ["..", "../../outside", "/outside", "a", "b/../../..", "up/out"];

/// One entry of a hostile layer: its kind, path and link.
fn entry() -> impl Strategy<Value = (u8, String, &'static str)> {
    let kinds = prop::sample::select(vec![b'0', b'0', b'1', b'2', b'2', b'3', b'5', b'5', b'6']);
    let path = (any::<bool>(), prop::collection::vec(prop::sample::select(PARTS.to_vec()), 1..4));
    let path = path.prop_map(|(absolute, parts)| if absolute { "/" } else { "" }.to_owned() + &parts.join("/"));
    (kinds, path, prop::sample::select(LINKS.to_vec()))
}

/// Unpacks it with each way of marking what is hidden; `outside` lies beside the layer.
fn unpack_beside(outside: &std::path::Path, entries: &[(u8, String, &str)]) {
    let tar = entries.iter().fold(Layer::new(), |layer, (kind, path, link)| {
        let data: &[u8] = if *kind == b'0' { b"overwritten" } else { b"" };
        layer.raw(*kind, path.as_bytes(), link.as_bytes(), data, |header| header.set_mode(0o777))
    });
    let (tar, mark) = (tar.tar(), if in_user_namespace() { OpaqueMark::User } else { OpaqueMark::Trusted });
    for mark in [mark, OpaqueMark::Names] {
        let root = outside.with_file_name("layer");
        crate::sys::removal::remove_path(&root).expect("removed");
        std::fs::create_dir(&root).expect("made");
        let wire = scratch_file("hostile");
        (&wire).write_all(&tar).expect("written");
        std::io::Seek::rewind(&mut &wire).expect("a file");
        let directory = std::fs::File::open(&root).expect("a directory");
        // Taken or refused: what counts is what is outside.
        let wire = Wire::new(Source::File(wire), None);
        let _ = unpack(wire, &sha256(&tar), directory.into(), mark, scratch_file("hostile-recipe"));
    }
}

#[test]
fn rows_16_to_19_no_list_of_entries_touches_what_is_outside() {
    if !in_node("properties::rows_16_to_19_no_list_of_entries_touches_what_is_outside") {
        return;
    }
    let scratch = Scratch::new("outside");
    let outside = scratch.0.join("outside");
    std::fs::create_dir(&outside).expect("made");
    std::fs::write(outside.join("a"), "untouched").expect("written");
    let look = || {
        let find = std::process::Command::new("find")
            .arg(&outside)
            .args(["-printf", "%p %y %m %U:%G %n %s %T@ %C@\\n"])
            .output()
            .expect("find(1) is there");
        let beside = std::fs::read_dir(&scratch.0).expect("listed").flatten().map(|entry| entry.file_name());
        let mut beside: Vec<_> = beside.filter(|name| name != "layer").collect();
        beside.sort();
        (String::from_utf8(find.stdout).expect("text"), beside)
    };
    let before = look();
    proptest!(|(entries in prop::collection::vec(entry(), 1..12))| {
        unpack_beside(&outside, &entries);
        prop_assert!(look() == before, "{entries:?}");
    });
}
