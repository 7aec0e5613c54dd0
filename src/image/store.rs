//! Images and layers that are here (surface; bodies follow).
//!
//! For pull.rs: `Puller::new(&ImageOptions, Store) -> Puller` (Clone) and
//! `Puller::pull(&self, reference: &str, Option<Credentials>, Option<ProgressSink>) -> Result<Arc<Image>, ImageError>`
//! are what `Images::pull` calls. `Images::find` and `load` take `reference::normalize(&str) -> Result<String, _>`
//! (`busybox` -> `docker.io/library/busybox:latest`; digests kept).

use std::sync::Arc;

use super::digest::Digest;
use super::layers::LayerStore;
use super::{Image, ImageError};

/// Names under which an image is committed, in their full form (`docker.io/library/busybox:1.36`).
#[derive(Debug, Clone, Default)]
pub struct ImageNames {
    /// `registry/repository:tag`; another image that had one of them loses it.
    pub repo_tags: Vec<String>,
    /// `registry/repository@sha256:...`.
    pub repo_digests: Vec<String>,
}

/// Images and layers that are here. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {}

impl Store {
    /// The layers.
    pub fn layers(&self) -> &LayerStore {
        todo!()
    }

    /// By name, digest or id; from memory.
    pub fn find(&self, _name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        todo!()
    }

    /// Validates the config, checks that every layer of its `rootfs.diff_ids` is here, and writes the image's record,
    /// durably. The id is the hash of `config_bytes`. Names are added to those the image has.
    pub async fn commit_image(
        &self,
        _config_bytes: Vec<u8>,
        _manifest: Option<&Digest>,
        _names: ImageNames,
    ) -> Result<Arc<Image>, ImageError> {
        todo!()
    }
}

/// `rootfs.diff_ids` of a config, bounded: what a pull must unpack, lowest first.
pub fn diff_ids(_config_bytes: &[u8]) -> Result<Vec<Digest>, ImageError> {
    todo!()
}
