//! Compressed blobs, where the configuration has them kept: `layers/ALGORITHM-HEX/blob-ALGORITHM-HEX`, each as it came.
//!
//! A blob is written while its layer is unpacked, and becomes durable and named with it. One that comes for a layer
//! that is here already is written and synced under a temporary name and then renamed into the layer's directory. So
//! what bears a blob's name is whole. A layer has as many as there are compressions of it that images came with, and
//! they go when no image names them; a blob that is the plain tar itself is not kept where the layer has a recipe for
//! it.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::{ImageError, Layer, LayerStore, Temporary, file_name, io_error, sync_directory};
use crate::image::ImageErrorKind;
use crate::image::digest::Digest;
use crate::image::hasher::digest_of_all;
use crate::image::unpack::stream::{Plain, Wire};

/// In front of the digest.
const PREFIX: &str = "blob-";

/// One that is kept.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    digest: Digest,
    /// Exact.
    pub(super) bytes: u64,
    /// As of its layer.
    pub(super) touched: u64,
}

impl Blob {
    pub(super) fn path_in(&self, layer: &Path) -> PathBuf {
        path_of(layer, &self.digest)
    }

    pub(super) fn create(&self, layer: &Path) -> Result<File, ImageError> {
        let path = self.path_in(layer);
        File::create(&path).map_err(io_error("create", &path))
    }
}

impl LayerStore {
    /// Whether compressed blobs are kept.
    pub fn keeps_blobs(&self) -> bool {
        self.shared.keeps_blobs
    }

    /// Whether the layer is here, and `blob`, which it came as, is here or can be written again.
    pub fn contains_blob(&self, diff_id: &Digest, blob: &Digest) -> bool {
        let mut table = self.shared.table();
        let now = table.tick();
        let Some(layer) = table.layers.get_mut(diff_id).filter(|layer| !layer.damaged) else { return false };
        layer.touched = now;
        let kept = layer.blobs.iter_mut().find(|kept| kept.digest == *blob);
        let is_written_again = blob == diff_id && layer.plain_bytes.is_some();
        kept.map(|kept| kept.touched = now).is_some() || is_written_again
    }

    /// Size of a kept blob.
    pub fn blob_bytes(&self, diff_id: &Digest, blob: &Digest) -> Option<u64> {
        let table = self.shared.table();
        table.layers.get(diff_id)?.blobs.iter().find(|kept| kept.digest == *blob).map(|kept| kept.bytes)
    }

    /// Opens a kept blob. Whoever asks holds the layer, and hashes what comes.
    pub fn open_blob(&self, diff_id: &Digest, blob: &Digest) -> Result<File, ImageError> {
        let path = path_of(&self.path(diff_id), blob);
        File::open(&path).map_err(io_error("open", &path))
    }

    /// Reads the layer's blobs and takes away those that are not what they were; answers them. Blocking.
    pub fn verify_blobs(&self, diff_id: &Digest) -> Result<Vec<Digest>, ImageError> {
        let blobs = self.shared.table().layers.get(diff_id).map(|layer| layer.blobs.clone()).unwrap_or_default();
        let mut damaged = Vec::new();
        for blob in blobs {
            let found = self.open_blob(diff_id, &blob.digest).ok();
            let found = found.and_then(|file| digest_of_all(blob.digest.algorithm(), file).ok());
            if found.as_ref() == Some(&blob.digest) {
                continue;
            }
            let path = blob.path_in(&self.path(diff_id));
            let mut table = self.shared.table();
            std::fs::remove_file(&path).or_else(missing_is_fine).map_err(io_error("remove", &path))?;
            if let Some(layer) = table.layers.get_mut(diff_id) {
                layer.blobs.retain(|known| known.digest != blob.digest);
            }
            damaged.push(blob.digest);
        }
        Ok(damaged)
    }

    /// The blob that `wire` claims to be, if such are kept.
    pub(super) fn to_keep(&self, wire: &Wire) -> Option<Blob> {
        let claim = wire.claim().filter(|_| self.shared.keeps_blobs)?;
        Some(Blob { digest: claim.digest.clone(), bytes: claim.size, touched: 0 })
    }

    /// Takes the blob of a layer that is here.
    pub(super) fn keep_blob(&self, wire: Wire, diff_id: &Digest, blob: Blob, what: &str) -> Result<(), ImageError> {
        if self.contains_blob(diff_id, &blob.digest) {
            return Ok(());
        }
        let temporary = self.temporary();
        let file = File::create(&temporary.path).map_err(io_error("create", &temporary.path))?;
        let copy = file.try_clone().map_err(io_error("open", &temporary.path))?;
        let plain = Plain::new(wire.keeping(copy), Some(diff_id.algorithm()));
        plain.and_then(|plain| plain.verify(Some(diff_id))).map_err(|error| error.of(what))?;
        file.sync_all().map_err(io_error("sync", &temporary.path))?;
        let mut table = self.shared.table();
        let touched = table.tick();
        match table.layers.get_mut(diff_id).filter(|layer| !layer.damaged) {
            Some(layer) => adopt(layer, temporary.path.clone(), &self.path(diff_id), blob, touched),
            None => {
                let message = format!("layer {diff_id} was removed, or found damaged, meanwhile: pull the image again");
                Err(ImageError::new(ImageErrorKind::Internal, message))
            }
        }
    }

    /// As [`LayerStore::collect`], of the blobs of layers that stay.
    pub(in crate::image) fn collect_blobs(&self, is_used: impl Fn(&Digest, &Digest) -> bool) -> Vec<Temporary> {
        let mut table = self.shared.table();
        let oldest_hold = table.holds.keys().next().copied().unwrap_or(u64::MAX);
        let mut gone = Vec::new();
        for (diff_id, layer) in &mut table.layers {
            let directory = self.path(diff_id);
            layer.blobs.retain(|blob| {
                if is_used(diff_id, &blob.digest) || blob.touched >= oldest_hold {
                    return true;
                }
                let temporary = self.temporary();
                let moved = std::fs::rename(blob.path_in(&directory), &temporary.path);
                if let Err(error) = &moved {
                    tracing::warn!("cannot remove blob {}: {error}", blob.digest);
                }
                gone.push(temporary);
                moved.is_err()
            });
        }
        gone
    }
}

/// What of the blob that came is to stay in the new layer.
pub(super) fn needed(
    kept: Option<Blob>,
    diff_id: &Digest,
    plain_bytes: Option<u64>,
    layer: &Path,
) -> Result<Vec<Blob>, ImageError> {
    let Some(blob) = kept else { return Ok(Vec::new()) };
    if blob.digest != *diff_id || plain_bytes.is_none() {
        return Ok(vec![blob]);
    }
    let path = blob.path_in(layer);
    std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
    Ok(Vec::new())
}

/// Gives a synced blob to the layer in `directory`. With the table held.
pub(super) fn adopt(
    layer: &mut Layer,
    from: PathBuf,
    directory: &Path,
    mut blob: Blob,
    touched: u64,
) -> Result<(), ImageError> {
    blob.touched = touched;
    layer.blobs.retain(|known| known.digest != blob.digest);
    let path = blob.path_in(directory);
    std::fs::rename(from, &path).map_err(io_error("rename", &path))?;
    layer.blobs.push(blob);
    sync_directory(directory)
}

/// Those in the directory of a layer.
pub(super) fn read(layer: &Path) -> Vec<Blob> {
    let entries = std::fs::read_dir(layer).into_iter().flatten().flatten();
    let blob = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let digest = name.strip_prefix(PREFIX)?.replacen('-', ":", 1).parse().ok()?;
        Some(Blob { digest, bytes: entry.metadata().ok().filter(std::fs::Metadata::is_file)?.len(), touched: 0 })
    };
    entries.filter_map(blob).collect()
}

fn path_of(layer: &Path, blob: &Digest) -> PathBuf {
    layer.join(format!("{PREFIX}{}", file_name(blob)))
}

fn missing_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
