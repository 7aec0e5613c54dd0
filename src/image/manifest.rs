//! Stand-in until registry's manifest.rs is joined: only what `LayerStore::unpack` needs.

use super::digest::Digest;

/// Names a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Of its bytes.
    pub digest: Digest,
    /// Of its bytes.
    pub size: u64,
    /// As claimed.
    pub media_type: String,
}
