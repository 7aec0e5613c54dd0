//! Layers on disk, shared by diff id (surface; bodies follow).

use tokio::io::AsyncRead;

use super::ImageError;
use super::digest::Digest;
use super::manifest::Descriptor;

/// The unpacked layers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LayerStore {}

/// While it lives, no layer that was seen ([`LayerStore::contains`]) or unpacked since it was taken is collected.
/// A pull or a load takes one before its first look and drops it after `Store::commit_image`.
#[derive(Debug)]
pub struct Hold {}

impl LayerStore {
    /// Keeps what is seen or unpacked from now on.
    pub fn hold(&self) -> Hold {
        todo!()
    }

    /// Whether the layer is here, whole.
    pub fn contains(&self, _diff_id: &Digest) -> bool {
        todo!()
    }

    /// Unpacks `blob` (bytes as from the wire; compression is recognised by its first bytes) in one pass and commits the
    /// layer. `BadImage` when size or hash are not the descriptor's, or the plain tar's hash is not `diff_id`. A second
    /// unpack of the same layer at the same time is harmless. Dropping the future stops it and leaves nothing.
    /// `on_bytes` gets the number of compressed bytes of each step.
    pub async fn unpack<R, F>(
        &self,
        _blob: R,
        _descriptor: &Descriptor,
        _diff_id: &Digest,
        _on_bytes: F,
    ) -> Result<(), ImageError>
    where
        R: AsyncRead + Send + Unpin,
        F: FnMut(u64) + Send,
    {
        todo!()
    }
}
