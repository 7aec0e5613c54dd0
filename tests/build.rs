//! What is built: one static binary of a known size, from the whole of the CRI.

use std::path::{Path, PathBuf};
use std::process::Command;

use cricket::proto::cri;

/// Promise 1. A release is stripped.
const RELEASE_BYTES_MAX: u64 = 20_000_000;
/// Calls of both services: release 1.36 has two fewer.
const CALLS: usize = 43;

/// The release where scripts/test has built one, otherwise what this test was built with.
fn binary() -> (PathBuf, bool) {
    match std::env::var_os("CRICKET_TEST_KIT") {
        Some(kit) => (PathBuf::from(kit).join("cricket"), true),
        None => (env!("CARGO_BIN_EXE_cricket").into(), !cfg!(debug_assertions)),
    }
}

/// Field of the program headers: segment types of a 64-bit ELF file.
fn segment_types(elf: &[u8]) -> Vec<u32> {
    let number = |at: usize, length: usize| {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(&elf[at..at + length]);
        u64::from_le_bytes(bytes)
    };
    let (offset, size, count) = (number(32, 8) as usize, number(54, 2) as usize, number(56, 2) as usize);
    (0..count).map(|at| number(offset + at * size, 4) as u32).collect()
}

#[test]
fn the_binary_is_static_and_position_independent() {
    const DYNAMIC: u32 = 2;
    const INTERPRETER: u32 = 3;
    const SHARED_OBJECT: [u8; 2] = [3, 0];
    let elf = std::fs::read(binary().0).expect("cargo built it");
    assert_eq!(&elf[..4], b"\x7fELF");
    assert_eq!(&elf[16..18], &SHARED_OBJECT, "position independent");
    let types = segment_types(&elf);
    assert!(types.contains(&DYNAMIC), "it relocates itself");
    assert!(!types.contains(&INTERPRETER), "it asks for no loader");
}

#[test]
fn the_release_is_small() {
    let (path, release) = binary();
    let bytes = std::fs::metadata(path).expect("cargo built it").len();
    assert!(!release || bytes < RELEASE_BYTES_MAX, "{bytes} bytes, {RELEASE_BYTES_MAX} are allowed");
}

#[test]
fn it_says_its_version() {
    let output = Command::new(binary().0).arg("--version").output().expect("it starts");
    let said = String::from_utf8(output.stdout).expect("text");
    assert_eq!(said.trim(), concat!("cricket ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_interface_has_every_call_of_its_main_branch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/cri.proto");
    let text = std::fs::read_to_string(path).expect("a file of the repository");
    assert_eq!(text.lines().filter(|line| line.trim_start().starts_with("rpc ")).count(), CALLS);
    // The newest of them, by the names that the code uses.
    let _ = (cri::CheckpointPodRequest::default(), cri::RestorePodRequest::default());
    let _ = (cri::Mount::default().mount_options, cri::RuntimeFeatures::default().mount_options);
}
