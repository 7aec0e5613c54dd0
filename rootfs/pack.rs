//! Part of `build.rs`: the demo image as an OCI archive, `OUT_DIR/demo.tar`.
//!
//! The image is one static program (`demo/main.rs`), links to it by the names of its commands, and the few files that
//! a container's root wants. The same sources give the same bytes: entries are in a fixed order, and times, owners and
//! modes are fixed too.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Full name of the image; `src/demo.rs` says the same, and its test compares them.
const NAME: &str = "cricket.local/demo:latest";
const TAG: &str = "latest";
/// What image tools write where a build is to be the same every time.
const CREATED: &str = "1970-01-01T00:00:00Z";
const COMMANDS: [&str; 8] = ["cat", "echo", "env", "exit", "id", "lines", "sleep", "write"];
const PASSWD: &str = "root:x:0:0:root:/:/bin/demo\nnobody:x:65534:65534:nobody:/:/bin/demo\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Compiles the program and packs it.
pub fn demo_image(out: &Path) -> Result<(), Box<dyn Error>> {
    let program = out.join("demo");
    compile(&program)?;
    fs::write(out.join("demo.tar"), archive(&layer(&fs::read(program)?)?)?)?;
    Ok(())
}

/// With the compiler that compiles cricket, for the same architecture, without a C library.
fn compile(program: &Path) -> Result<(), Box<dyn Error>> {
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc
        .args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "demo", "--target"])
        .arg(env::var("TARGET")?);
    for option in [
        "panic=abort",
        "opt-level=s",
        "strip=symbols",
        "relocation-model=static",
        "target-feature=+crt-static",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-Wl,--build-id=none",
        "link-arg=-Wl,-z,noseparate-code",
    ] {
        rustc.args(["-C", option]);
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let status = rustc.arg("-o").arg(program).arg("rootfs/demo/main.rs").status()?;
    if status.success() { Ok(()) } else { Err(format!("rootfs/demo/main.rs does not compile: {status}").into()) }
}

fn architecture() -> Result<&'static str, Box<dyn Error>> {
    match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => Err(format!("cricket is built for x86_64 and aarch64, not for {other}").into()),
    }
}

fn layer(program: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (directory, mode) in
        [("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777)]
    {
        entry(&mut tar, &format!("{directory}/"), tar::EntryType::Directory, mode, &[])?;
    }
    entry(&mut tar, "bin/demo", tar::EntryType::Regular, 0o755, program)?;
    for command in COMMANDS {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{command}"), "demo")?;
    }
    entry(&mut tar, "etc/group", tar::EntryType::Regular, 0o644, GROUP.as_bytes())?;
    entry(&mut tar, "etc/passwd", tar::EntryType::Regular, 0o644, PASSWD.as_bytes())?;
    Ok(tar.into_inner()?)
}

fn archive(layer: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut blobs = BTreeMap::new();
    let mut blob = |media_type: &str, bytes: Vec<u8>| {
        let (hex, size) = (hex_digest(&bytes), bytes.len());
        let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": size});
        blobs.insert(hex, bytes);
        descriptor
    };
    let layer_descriptor = blob(LAYER_TYPE, layer.to_vec());
    let config = image_config(&layer_descriptor["digest"])?;
    let config_descriptor = blob(CONFIG_TYPE, serde_json::to_vec(&config)?);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config_descriptor, "layers": [layer_descriptor],
    });
    let mut manifest_descriptor = blob(MANIFEST_TYPE, serde_json::to_vec(&manifest)?);
    manifest_descriptor["annotations"] =
        json!({"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": TAG});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [manifest_descriptor]});

    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, "oci-layout", tar::EntryType::Regular, 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    entry(&mut tar, "index.json", tar::EntryType::Regular, 0o644, &serde_json::to_vec(&index)?)?;
    for (hex, bytes) in &blobs {
        entry(&mut tar, &format!("blobs/sha256/{hex}"), tar::EntryType::Regular, 0o644, bytes)?;
    }
    Ok(tar.into_inner()?)
}

fn image_config(diff_id: &Value) -> Result<Value, Box<dyn Error>> {
    Ok(json!({
        "created": CREATED,
        "architecture": architecture()?,
        "os": "linux",
        "config": {"Cmd": ["demo"], "Env": ["PATH=/bin"], "WorkingDir": "/", "StopSignal": "SIGTERM"},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": CREATED, "created_by": "rootfs/pack.rs"}],
    }))
}

fn entry(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    bytes: &[u8],
) -> Result<(), Box<dyn Error>> {
    Ok(tar.append_data(&mut header(kind, mode, bytes.len() as u64), path, bytes)?)
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
