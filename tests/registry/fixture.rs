//! Images made here, and what it takes to ask for them.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cricket::image::digest::{Algorithm, Digest};
use cricket::image::manifest::{Descriptor, MediaType};
use cricket::image::registry::error::RegistryError;
use cricket::image::registry::patience::Patience;
use cricket::image::registry::session::Session;
use cricket::image::{Credentials, ImageError, ImageErrorKind};
use serde_json::{Value, json};
use sha2::Digest as _;

use super::mock::{Reply, Seen};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Algorithm::Sha256, &sha2::Sha256::digest(bytes))
}

pub fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor { media_type: MediaType::Other(String::new()), digest: sha256(bytes), size: bytes.len() as u64 }
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Content of a registry: what is at `/v2/NAME/manifests/X` and `/v2/NAME/blobs/X`.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// Content type and bytes by tag or digest.
    pub manifests: HashMap<String, (String, Vec<u8>)>,
    pub blobs: HashMap<String, Vec<u8>>,
}

impl Content {
    pub fn add_manifest(&mut self, tag: &str, content_type: &str, value: &Value) -> Digest {
        let bytes = value.to_string().into_bytes();
        let digest = sha256(&bytes);
        self.manifests.insert(digest.to_string(), (content_type.to_owned(), bytes.clone()));
        if !tag.is_empty() {
            self.manifests.insert(tag.to_owned(), (content_type.to_owned(), bytes));
        }
        digest
    }

    /// An image with one file of noise per layer.
    pub fn add_image(&mut self, tag: &str, layer_sizes: &[usize]) -> Digest {
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for (index, size) in layer_sizes.iter().enumerate() {
            let tar = tar_of(&format!("file-{index}"), &noise(index as u64 + 1, *size));
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&tar).expect("memory");
            let blob = gzip.finish().expect("memory");
            diff_ids.push(sha256(&tar).to_string());
            layers.push(self.add_blob(OCI_LAYER, blob));
        }
        let config = json!({
            "architecture": go_architecture(), "os": "linux", "config": {"Cmd": ["/file-0"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.add_blob(OCI_CONFIG, config.to_string().into_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        self.add_manifest(tag, OCI_MANIFEST, &manifest)
    }

    pub fn add_blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = sha256(&bytes).to_string();
        let value = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        value
    }

    /// What a good registry answers.
    pub fn answer(&self, seen: &Seen) -> Reply {
        let path = seen.path.split('?').next().unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        if path.contains("/manifests/")
            && let Some((content_type, bytes)) = self.manifests.get(last)
        {
            let digest = sha256(bytes).to_string();
            return Reply::new(200, bytes.clone())
                .header("content-type", content_type)
                .header("docker-content-digest", digest);
        }
        match self.blobs.get(last).filter(|_| path.contains("/blobs/")) {
            Some(bytes) => ranged(seen, bytes),
            None => Reply::new(404, r#"{"errors":[{"code":"NAME_UNKNOWN","message":"it is not here"}]}"#),
        }
    }
}

/// The asked part of `bytes`.
pub fn ranged(seen: &Seen, bytes: &[u8]) -> Reply {
    match seen.header("range") {
        None => Reply::new(200, bytes).header("content-type", "application/octet-stream"),
        Some(_) => {
            let first = seen.range_start();
            let range = format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, &bytes[first..]).header("content-range", range)
        }
    }
}

pub fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tar_of(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, name, bytes).expect("memory");
    builder.into_inner().expect("memory")
}

/// A directory of the test's own, removed with it.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cricket-registry-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// The host `reg.test` is configured so.
    pub fn with_hosts(text: &str) -> Self {
        let directory = Self::new();
        std::fs::create_dir_all(directory.0.join("reg.test")).expect("a directory");
        std::fs::write(directory.0.join("reg.test/hosts.toml"), text).expect("a file");
        directory
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Short enough for a test, long enough for a slow machine.
pub fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(5),
        answer: Duration::from_secs(5),
        stall: Duration::from_millis(500),
        document: Duration::from_secs(5),
        attempts: 4,
        first_delay: Duration::from_millis(5),
        longest_delay: Duration::from_secs(2),
    }
}

pub async fn session(hosts: &str, credentials: Option<Credentials>) -> Arc<Session> {
    session_of("reg.test/a/b:1", hosts, credentials).await
}

pub async fn session_of(reference: &str, hosts: &str, credentials: Option<Credentials>) -> Arc<Session> {
    let directory = Directory::with_hosts(hosts);
    let reference = reference.parse().expect("a reference");
    let session = Session::open(directory.0.clone(), reference, credentials, patience()).await;
    Arc::new(session.expect("a session"))
}

pub fn basic(username: &str, password: &str) -> Option<Credentials> {
    Some(Credentials::Basic { username: username.to_owned(), password: password.to_owned() })
}

pub fn kind(error: RegistryError) -> ImageErrorKind {
    ImageError::from(error).kind
}
