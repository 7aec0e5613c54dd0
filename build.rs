//! Generates the gRPC code from `proto/`; no protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["cri.proto", "cricket.proto", "supervisor.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".runtime.v1", "#[serde(default)]")
        .compile_fds(descriptors)?;
    Ok(())
}
