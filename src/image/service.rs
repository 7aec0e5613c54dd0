//! [`Images`]: the image service as the rest of the program sees it.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Credentials, FilesystemUsage, Image, ImageError, ImageOptions, ProgressSink, Snapshot};

/// The image service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images {}

impl Images {
    /// Reads the store; removes what a crash left half made.
    pub async fn open(_options: ImageOptions) -> Result<Self, ImageError> {
        todo!()
    }

    /// Pulls. Two pulls of one image join; dropping the future stops a pull that nobody else waits for.
    pub async fn pull(
        &self,
        _reference: &str,
        _credentials: Option<Credentials>,
        _progress: Option<ProgressSink>,
    ) -> Result<Arc<Image>, ImageError> {
        todo!()
    }

    /// Loads every image of an OCI or docker archive (plain, gzip or zstd), streamed.
    pub async fn load(
        &self,
        _archive: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
        _progress: Option<ProgressSink>,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        todo!()
    }

    /// Every image, from memory.
    pub fn list(&self) -> Vec<Arc<Image>> {
        todo!()
    }

    /// By tag, digest, id or a unique prefix of the id; from memory.
    pub fn find(&self, _name: &str) -> Option<Arc<Image>> {
        todo!()
    }

    /// Removes the image with all its tags. False: there was none. Layers in use by snapshots stay until those go.
    pub async fn remove(&self, _name: &str) -> Result<bool, ImageError> {
        todo!()
    }

    /// Of images (first) and snapshots (second).
    pub fn usage(&self) -> Result<(FilesystemUsage, FilesystemUsage), ImageError> {
        todo!()
    }

    /// Makes (or finds again) the snapshot `key`, a container's id. Durable before it is answered.
    pub async fn snapshot(&self, _key: &str, _image: &Image, _read_only: bool) -> Result<Snapshot, ImageError> {
        todo!()
    }

    /// Bytes and inodes of the container's own writes.
    pub async fn snapshot_usage(&self, _key: &str) -> Result<FilesystemUsage, ImageError> {
        todo!()
    }

    /// Removes the snapshot; that there is none is fine.
    pub async fn remove_snapshot(&self, _key: &str) -> Result<(), ImageError> {
        todo!()
    }

    /// At start: removes the snapshots of containers that are no more.
    pub async fn retain_snapshots(&self, _keep: &HashSet<String>) -> Result<(), ImageError> {
        todo!()
    }
}
