//! [`Images`]: the image service as the rest of the program sees it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::archive;
use super::archive::save::Format;
use super::layers::io_error;
use super::pins::Pins;
use super::pull::{PullCounts, Puller};
use super::reference;
use super::snapshot::{MountPoint, Owners, Snapshots, Writes};
use super::store::{Pruned, Store, blocking};
use super::verify::{self, VerifiedImage, VerifiedLayer};
use super::{Credentials, FilesystemUsage, Image, ImageError, ImageErrorKind, ImageOptions, ProgressSink, Snapshot};
use crate::sys::removal::remove_path;
use crate::sys::usage::Usage;

/// The image service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images {
    options: Arc<ImageOptions>,
    store: Store,
    snapshots: Snapshots,
    puller: Puller,
}

impl Images {
    /// Reads the store; removes what a crash left half made.
    pub async fn open(options: ImageOptions) -> Result<Self, ImageError> {
        blocking(move || {
            let spool = options.root.join(archive::SPOOL);
            remove_path(&spool).map_err(|e| io_error("remove", &spool)(e.into()))?;
            let pins = Pins::new(&options.pinned);
            let store = Store::open_with(&options.root, options.in_user_namespace, pins, options.keep_blobs)?;
            let fuse = options.fuse_overlayfs.as_deref();
            let snapshots = Snapshots::open(&options.root, store.clone(), options.in_user_namespace, fuse)?;
            let puller = Puller::new(&options, store.clone());
            Ok(Self { options: Arc::new(options), store, snapshots, puller })
        })
        .await
    }

    /// Pulls. Two pulls of one image join; dropping the future stops a pull that nobody else waits for.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        progress: Option<ProgressSink>,
    ) -> Result<Arc<Image>, ImageError> {
        match reference::completed(reference, &self.options.short_names) {
            Some(_) if self.options.short_names.is_empty() => {
                let message = format!(
                    "{reference:?} names no registry: write docker.io/library/NAME or the like, or set registry.short_names"
                );
                Err(ImageError::new(ImageErrorKind::Invalid, message))
            }
            Some(complete) => self.puller.pull(&complete, credentials, progress).await,
            None => self.puller.pull(reference, credentials, progress).await,
        }
    }

    /// What pulls have come to since the daemon's start.
    pub fn pull_counts(&self) -> PullCounts {
        self.puller.counts()
    }

    /// Loads every image of an OCI or docker archive (plain, gzip or zstd), streamed.
    pub async fn load(
        &self,
        archive: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
        progress: Option<ProgressSink>,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        archive::load(&self.store, &self.options.root, archive, progress).await
    }

    /// Writes images as one archive, plain. What fails in the middle of it ends it early.
    pub async fn save(
        &self,
        names: Vec<String>,
        format: Format,
        mut out: Box<dyn std::io::Write + Send>,
    ) -> Result<(), ImageError> {
        let store = self.store.clone();
        blocking(move || archive::save::save(&store, &names, format, &mut out)).await
    }

    /// Reads every layer of the images (of all without a name) again and compares it with its digest. A layer that is
    /// damaged is fetched anew by the next pull, if no container stands on it.
    pub async fn verify(
        &self,
        names: Vec<String>,
        report: impl Fn(VerifiedLayer) -> bool + Send + 'static,
    ) -> Result<Vec<VerifiedImage>, ImageError> {
        let store = self.store.clone();
        blocking(move || verify::verify(&store, &names, &report)).await
    }

    /// Removes images that no container stands on and that are not pinned; unless `all`, only those without a name.
    /// Answers them and the bytes that became free.
    pub async fn prune(&self, all: bool) -> Result<(Vec<Arc<Image>>, u64), ImageError> {
        let store = self.store.clone();
        let Pruned { images, bytes, gone } = blocking(move || store.prune(all)).await?;
        drop(tokio::task::spawn_blocking(move || drop(gone)));
        Ok((images, bytes))
    }

    /// Every image, from memory.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.store.list()
    }

    /// By tag, digest, id or a unique prefix of the id; from memory.
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.store.find(&self.complete(name)).ok().flatten()
    }

    /// What a name without a registry means here: an image that is here, of the configured registry before another.
    fn complete(&self, name: &str) -> String {
        let complete = reference::completed(name, &self.options.short_names);
        complete.filter(|name| self.store.find(name).is_ok_and(|image| image.is_some())).unwrap_or(name.to_owned())
    }

    /// Removes the image with all its tags. False: there was none. Layers in use by snapshots stay until those go.
    pub async fn remove(&self, name: &str) -> Result<bool, ImageError> {
        let (store, name) = (self.store.clone(), self.complete(name));
        let (found, gone) = blocking(move || store.remove(&name)).await?;
        // The image is gone for everyone; its files may take their time.
        drop(tokio::task::spawn_blocking(move || drop(gone)));
        Ok(found)
    }

    /// Of images (first) and snapshots (second). Does not block.
    pub fn usage(&self) -> Result<(FilesystemUsage, FilesystemUsage), ImageError> {
        let (bytes, inodes) = self.store.total();
        let images = FilesystemUsage { mountpoint: self.options.root.clone(), bytes, inodes };
        let Usage { bytes, inodes } = self.snapshots.total();
        let mountpoint = self.snapshots.directory().to_owned();
        Ok((images, FilesystemUsage { mountpoint, bytes, inodes }))
    }

    /// Makes (or finds again) the snapshot `key`, a container's id. Durable before it is answered. With `read_only` the
    /// mount can still be written, for mount points that the image lacks; the OCI spec's `root.readonly` closes it.
    pub async fn snapshot(&self, key: &str, image: &Image, read_only: bool) -> Result<Snapshot, ImageError> {
        self.snapshot_for(key, image, if read_only { Writes::MountPoints } else { Writes::Kept }, None).await
    }

    /// As [`Self::snapshot`], with a mount that is read-only itself: it has no upper layer, and `points` are made in it
    /// beforehand.
    pub async fn read_only_snapshot(
        &self,
        key: &str,
        image: &Image,
        points: Vec<MountPoint>,
    ) -> Result<Snapshot, ImageError> {
        self.snapshot_for(key, image, Writes::None(points), None).await
    }

    /// As both of these, with other `owners` than the image's own where some are given.
    pub async fn snapshot_for(
        &self,
        key: &str,
        image: &Image,
        writes: Writes,
        owners: Option<Owners>,
    ) -> Result<Snapshot, ImageError> {
        let (snapshots, key, image) = (self.snapshots.clone(), key.to_owned(), image.clone());
        blocking(move || snapshots.create(&key, &image, &writes, owners.as_ref())).await
    }

    /// Bytes and inodes of the container's own writes.
    pub async fn snapshot_usage(&self, key: &str) -> Result<FilesystemUsage, ImageError> {
        let (snapshots, key) = (self.snapshots.clone(), key.to_owned());
        blocking(move || {
            let Usage { bytes, inodes } = snapshots.usage(&key)?;
            Ok(FilesystemUsage { mountpoint: snapshots.directory().to_owned(), bytes, inodes })
        })
        .await
    }

    /// What the container wrote as it was measured last, and how long ago that was; none: never. Does not block.
    pub fn measured(&self, key: &str) -> Option<(Duration, FilesystemUsage)> {
        let (age, Usage { bytes, inodes }) = self.snapshots.measured(key)?;
        let mountpoint = self.snapshots.directory().to_owned();
        Some((age, FilesystemUsage { mountpoint, bytes, inodes }))
    }

    /// Measures these; it goes on when the future is dropped.
    pub async fn measure(&self, keys: Vec<String>) {
        let snapshots = self.snapshots.clone();
        let work = tokio::task::spawn_blocking(move || {
            for key in keys {
                // One that goes meanwhile has no usage.
                let _ = snapshots.usage(&key);
            }
        });
        let _ = work.await;
    }

    /// Measures again in the background what was measured long ago.
    pub fn measure_again(&self) {
        self.snapshots.measure_again();
    }

    /// Where containers' writes are.
    pub fn snapshot_directory(&self) -> &std::path::Path {
        self.snapshots.directory()
    }

    /// Removes the snapshot; that there is none is fine.
    pub async fn remove_snapshot(&self, key: &str) -> Result<(), ImageError> {
        let (snapshots, key) = (self.snapshots.clone(), key.to_owned());
        blocking(move || snapshots.remove(&key)).await
    }

    /// At start: removes the snapshots of containers that are no more.
    pub async fn retain_snapshots(&self, keep: &HashSet<String>) -> Result<(), ImageError> {
        let (snapshots, keep) = (self.snapshots.clone(), keep.clone());
        blocking(move || snapshots.retain(&keep)).await
    }

    /// Whether the kernel stacks the layers of snapshots (see `check`).
    pub fn has_overlay(&self) -> bool {
        self.snapshots.has_overlay()
    }

    /// Whether fuse-overlayfs does so where the kernel does not; otherwise each snapshot is a copy of its image there.
    pub fn has_fuse(&self) -> bool {
        self.snapshots.has_fuse()
    }
}
