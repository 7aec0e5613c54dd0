//! The demo image: an OCI archive of a few KB that travels in the binary, so that a first `cricket run` needs neither a
//! registry nor a network. `build.rs` makes it from `rootfs/`.

/// Its name. An image that is asked for by this name and is not there is loaded from [`ARCHIVE`].
pub const NAME: &str = "cricket.local/demo:latest";

/// An OCI image layout as a tar archive, with one uncompressed layer.
pub static ARCHIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/demo.tar"));

#[cfg(test)]
mod tests {
    use super::*;

    /// What may be added to the binary for the sake of a first run.
    const ARCHIVE_BYTES_MAX: usize = 64 * 1024;

    #[test]
    fn the_archive_is_small_and_bears_the_name() {
        assert!(ARCHIVE.len() < ARCHIVE_BYTES_MAX, "{} bytes", ARCHIVE.len());
        let mut archive = tar::Archive::new(ARCHIVE);
        let mut index = String::new();
        for entry in archive.entries().expect("a tar archive") {
            let mut entry = entry.expect("a whole entry");
            if entry.path_bytes().as_ref() == b"index.json" {
                std::io::Read::read_to_string(&mut entry, &mut index).expect("text");
            }
        }
        let index: serde_json::Value = serde_json::from_str(&index).expect("JSON");
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], NAME);
    }
}
