//! OCI archives made here, of layers that do not compress.

use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// A plain layer with one file of `size` bytes, the same for the same seed.
pub fn layer_of(name: &str, seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let bytes: Vec<u8> = std::iter::repeat_with(next).flat_map(u64::to_le_bytes).take(size).collect();
    let mut tar = Builder::new(Vec::new());
    add(&mut tar, name, &bytes);
    tar.into_inner().expect("in memory")
}

/// An archive of one image with these plain layers, named `name`.
pub fn archive_of(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    image_of(name, layers, &serde_json::json!({"Cmd": ["/none"]}))
}

/// The same with a configuration of its own.
pub fn image_of(name: &str, layers: &[Vec<u8>], config: &serde_json::Value) -> Vec<u8> {
    let oci = "application/vnd.oci.image";
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": format!("{oci}.{kind}"), "digest": digest(bytes), "size": bytes.len()});
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": format!("{oci}.manifest.v1+json"),
        "config": descriptor("config.v1+json", &config),
        "layers": layers.iter().map(|layer| descriptor("layer.v1.tar", layer)).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor("manifest.v1+json", &manifest);
    entry["annotations"] = serde_json::json!({"io.containerd.image.name": name});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    let mut tar = Builder::new(Vec::new());
    add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    add(&mut tar, "index.json", index.to_string().as_bytes());
    for bytes in [&manifest, &config].into_iter().chain(layers) {
        add(&mut tar, &format!("blobs/{}", digest(bytes).replace(':', "/")), bytes);
    }
    tar.into_inner().expect("in memory")
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn add(tar: &mut Builder<Vec<u8>>, path: &str, bytes: &[u8]) {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).expect("in memory");
}
