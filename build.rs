//! Generates the gRPC code from `proto/` (no protoc is needed), then compiles and packs the demo image from `rootfs/`.

#[path = "rootfs/pack.rs"]
mod pack;

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["cri.proto", "cricket.proto", "supervisor.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".runtime.v1", "#[serde(default)]")
        // Answers that are put together from encoded items.
        .extern_path(".runtime.v1.ListContainersResponse", "crate::proto::lists::ListContainersResponse")
        .extern_path(".runtime.v1.ListPodSandboxResponse", "crate::proto::lists::ListPodSandboxResponse")
        .compile_fds(descriptors)?;

    println!("cargo:rerun-if-changed=rootfs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    pack::demo_image(&out)
}
