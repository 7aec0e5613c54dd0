//! Layers, images and directories to test with.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::image::digest::{Algorithm, Digest};
use crate::image::hasher::digest_of;
use crate::image::manifest::{Compression, Descriptor, MediaType};
use crate::image::store::{ImageNames, Store};
use crate::image::{Image, ImageError, ImageOptions, Images, Snapshot};
use crate::sys::removal::remove_path;

/// Whether this process has the capabilities that a node has. Otherwise the test runs again, as root of a user
/// namespace with every subordinate id, in a process of its own, and the caller just returns.
pub fn in_node(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let name = format!("image::tests::{test}");
    let status = std::process::Command::new("unshare")
        .args(["--map-root-user", "--map-auto", "--mount", "--"])
        .arg(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", &name, "--nocapture"])
        .status()
        .expect("unshare(1) is there");
    assert!(status.success(), "{name} failed in a user namespace");
    false
}

/// Whether this process has a mount namespace of its own, as root of a node. Otherwise the test runs again in one, and
/// the caller just returns.
pub fn in_mount_namespace(test: &str) -> bool {
    const INSIDE: &str = "CRICKET_TEST_IN_MOUNT_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let name = format!("image::tests::{test}");
    let mut unshare = std::process::Command::new("unshare");
    unshare.env(INSIDE, "yes").args(["--mount", "--propagation=private"]);
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--map-root-user", "--map-auto"]);
    }
    unshare.arg("--").arg(std::env::current_exe().expect("this program has a path"));
    let status = unshare.args(["--exact", &name, "--nocapture"]).status().expect("unshare(1) is there");
    assert!(status.success(), "{name} failed in a mount namespace of its own");
    false
}

/// Whether our root is that of a user namespace.
pub fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").expect("/proc is mounted");
    map.split_whitespace().last() != Some("4294967295")
}

/// A directory that goes when the test ends.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cricket-{name}-{}", std::process::id()));
        remove_path(&path).expect("removed");
        std::fs::create_dir_all(&path).expect("made");
        Self(path)
    }

    pub fn options(&self) -> ImageOptions {
        ImageOptions {
            root: self.0.join("images"),
            registry_config_path: self.0.join("certs.d"),
            in_user_namespace: in_user_namespace(),
            ..ImageOptions::default()
        }
    }

    pub fn store(&self) -> Store {
        Store::open(&self.options().root, in_user_namespace()).expect("a store")
    }

    pub async fn images(&self) -> Images {
        Images::open(self.options()).await.expect("the service")
    }

    /// Names in `layers/` that belong to no committed layer.
    pub fn leftovers(&self) -> Vec<String> {
        let root = self.options().root;
        let names = |path: PathBuf| {
            let entries = std::fs::read_dir(path).into_iter().flatten();
            entries.map(|e| e.expect("an entry").file_name().into_string().expect("a name")).collect::<Vec<_>>()
        };
        let mut left = names(root.join("layers"));
        left.retain(|name| name.starts_with('.'));
        left.extend(names(root.join("spool")));
        left
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_path(&self.0).expect("removed");
    }
}

/// Writes a tar of raw headers, so that it may say anything.
#[derive(Default)]
pub struct Layer {
    bytes: Vec<u8>,
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn entry(self, kind: u8, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        self.raw(kind, path.as_bytes(), link.as_bytes(), data, |header| header.set_mode(mode))
    }

    pub fn raw(
        mut self,
        kind: u8,
        path: &[u8],
        link: &[u8],
        data: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path);
        old.linkname[..link.len()].copy_from_slice(link);
        change(&mut header);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, data: &str) -> Self {
        self.entry(b'0', path, "", 0o644, data.as_bytes())
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(b'5', path, "", 0o755, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, 0o777, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target, 0o644, b"")
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b'x', b"pax", b"", &data, |_| ())
    }

    pub fn tar(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

pub fn sha256(bytes: &[u8]) -> Digest {
    digest_of(Algorithm::Sha256, bytes)
}

pub fn descriptor(blob: &[u8]) -> Descriptor {
    Descriptor { media_type: MediaType::Layer(Compression::None), digest: sha256(blob), size: blob.len() as u64 }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("compressed");
    encoder.finish().expect("compressed")
}

/// Unpacks a plain tar; gives where its tree is.
pub async fn unpack(store: &Store, tar: &[u8]) -> Result<PathBuf, ImageError> {
    let diff_id = sha256(tar);
    store.layers().unpack(tar, &descriptor(tar), &diff_id, |_| ()).await?;
    Ok(store.layers().tree(&diff_id))
}

/// A config of these layers.
pub fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|tar| sha256(tar).to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    config.to_string().into_bytes()
}

/// Unpacks and commits an image named `tag`.
pub async fn commit(store: &Store, layers: &[Vec<u8>], tag: &str) -> Arc<Image> {
    for tar in layers {
        unpack(store, tar).await.expect("unpacked");
    }
    let names = ImageNames { repo_tags: vec![tag.to_owned()], ..ImageNames::default() };
    store.commit_image(config(layers), None, names).await.expect("committed")
}

/// A path in a snapshot's detached mount.
pub fn inside(snapshot: &Snapshot, path: &str) -> PathBuf {
    Path::new("/proc/self/fd").join(snapshot.mount.as_raw_fd().to_string()).join(path)
}

impl Layer {
    /// Without the end marker.
    pub fn bytes_only(self) -> Vec<u8> {
        self.bytes
    }
}
