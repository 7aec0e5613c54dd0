//! Parsers of strangers' bytes, on good input that was damaged at random: they end, without a panic, with a value or an
//! error. What they say is tested elsewhere.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::support::*;
use crate::image::config;
use crate::image::manifest::Manifest;
use crate::image::unpack::entries::Entries;
use crate::image::unpack::recipe::{Recorder, write_again};

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
        // The file is not there, so even an undamaged recipe is refused.
        prop_assert!(write_again(other, tree.into(), &mut std::io::sink()).is_err());
    }
}
