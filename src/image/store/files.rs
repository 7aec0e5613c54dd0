//! The files beside an image's record: read with their digests checked, written whole or not at all.

use std::io::{Read, Write};
use std::path::Path;
use std::time::SystemTime;

use super::VERSION;
use crate::image::digest::Digest;
use crate::image::hasher::digest_of;
use crate::image::layers::io_error;
use crate::image::manifest::CONFIG_BYTES_MAX;
use crate::image::{ImageError, ImageErrorKind};
use crate::store;

/// Of an image's config, as it came.
pub(super) const CONFIG: &str = "config";
/// Of its manifest, as it came, where blobs are kept.
pub(super) const MANIFEST: &str = "manifest";

pub(super) fn is_newer(path: &Path) -> bool {
    store::read_known::<serde::de::IgnoredAny>(path, VERSION).is_err_and(|error| error.is_newer())
}

pub(super) fn read_config(path: &Path, id: &Digest) -> Result<Vec<u8>, ImageError> {
    let file = std::fs::File::open(path).map_err(io_error("open", path))?;
    let mut config = Vec::new();
    let mut bounded = file.take(CONFIG_BYTES_MAX + 1);
    bounded.read_to_end(&mut config).map_err(io_error("read", path))?;
    match digest_of(id.algorithm(), &config) == *id {
        true => Ok(config),
        false => Err(ImageError::new(ImageErrorKind::Internal, format!("the config of image {id} is damaged"))),
    }
}

pub(super) fn written_at(record: &Path) -> Option<SystemTime> {
    std::fs::metadata(record).and_then(|metadata| metadata.modified()).ok()
}

/// A config or a manifest without a record, or what a crash left of writing either.
pub(super) fn remove_leftover(path: &Path) -> Result<(), ImageError> {
    let is_known = path.extension().is_some_and(|extension| extension == CONFIG || extension == MANIFEST);
    if is_known && path.with_extension("json").exists() {
        return Ok(());
    }
    Ok(store::remove(path)?)
}

pub(super) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        std::fs::rename(&temporary, path)
    };
    let result = write();
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result.map_err(io_error("write", path))
}
