//! The manifest that an image came with, where compressed blobs are kept: `images/ALGORITHM-HEX.manifest`, byte for
//! byte.
//!
//! It belongs to the image when its digest is the one in the image's record, which is written after it; a crash in
//! between leaves an image without one. Its blobs are with the layers (`layers::blobs`), and an image whose manifest or
//! blobs are not all here is saved as one that never had them.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::files::write_bytes;
use super::{Held, ImageRecord, Store};
use crate::image::digest::Digest;
use crate::image::hasher::digest_of;
use crate::image::layers::{BLOCK_BYTES, LayerStore};
use crate::image::manifest::{Descriptor, MANIFEST_BYTES_MAX, Manifest, MediaType};
use crate::image::{Image, ImageError, ImageErrorKind};
use crate::store;

/// A manifest as it came.
#[derive(Debug, Clone)]
pub struct Came {
    /// Of the bytes.
    pub digest: Digest,
    /// Of an image, not of an index.
    pub bytes: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnType {
    media_type: Option<String>,
}

/// What a manifest that is kept says.
#[derive(Debug, PartialEq, Eq)]
pub struct Original {
    /// Of its bytes.
    pub digest: Digest,
    /// Of its own.
    pub media_type: MediaType,
    /// Compressed, lowest first.
    pub layers: Vec<Descriptor>,
    bytes: u64,
}

impl Original {
    /// Of an image with this id; none: it is not of that image.
    fn of(came: &Came, id: &Digest) -> Option<Self> {
        let Ok(Manifest::Image(image)) = Manifest::parse(&came.bytes, None) else { return None };
        let own: OwnType = serde_json::from_slice(&came.bytes).ok()?;
        let media_type = own.media_type.map_or(MediaType::OciManifest, |text| MediaType::parse(&text));
        let (digest, bytes) = (came.digest.clone(), came.bytes.len() as u64);
        (image.config.digest == *id).then_some(Self { digest, media_type, layers: image.layers, bytes })
    }

    /// Whether everything that it names is here.
    fn is_complete(&self, layers: &LayerStore, diff_ids: &[Digest]) -> bool {
        let mut pairs = diff_ids.iter().zip(&self.layers);
        pairs.all(|(diff_id, layer)| layers.contains_blob(diff_id, &layer.digest))
    }

    /// Its own bytes and those of its blobs.
    pub(super) fn kept_bytes(&self, layers: &LayerStore, diff_ids: &[Digest]) -> u64 {
        let mut pairs: Vec<_> = diff_ids.iter().zip(self.layers.iter().map(|layer| &layer.digest)).collect();
        pairs.sort_unstable();
        pairs.dedup();
        let blobs = pairs.into_iter().filter_map(|(diff_id, blob)| layers.blob_bytes(diff_id, blob));
        self.bytes + blobs.sum::<u64>()
    }
}

/// Bytes on disk and number of manifests.
pub(super) fn extent<'a>(originals: impl Iterator<Item = &'a Arc<Original>>) -> (u64, u64) {
    originals.fold((0, 0), |(bytes, count), one| (bytes + one.bytes.next_multiple_of(BLOCK_BYTES), count + 1))
}

impl Held {
    /// Compressed blobs that the image came with.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.original.iter().flat_map(|original| &original.layers).map(|layer| &layer.digest)
    }
}

impl Store {
    /// What the image came with, if all of it is here.
    pub fn original(&self, image: &Image) -> Option<Arc<Original>> {
        let id: Digest = image.id.parse().ok()?;
        let held = self.index().images.get(&id)?.clone();
        held.original.filter(|original| original.is_complete(self.layers(), &held.layers))
    }

    /// The manifest of [`Self::original`], as it came. Blocking.
    pub fn manifest_bytes(&self, image: &Image, original: &Original) -> Result<Vec<u8>, ImageError> {
        let id: Digest = image.id.parse().map_err(|e| ImageError::new(ImageErrorKind::Internal, format!("{e}")))?;
        let damaged = || format!("the manifest of image {id} is damaged: pull the image again");
        read_bytes(&self.manifest_path(&id), &original.digest)
            .ok_or_else(|| ImageError::new(ImageErrorKind::Internal, damaged()))
    }

    /// What is to be kept of a commit: the manifest that came, or the one that was here and is still the image's.
    pub(super) fn original_of(&self, id: &Digest, came: Option<&Came>, known: Option<&Held>) -> Option<Arc<Original>> {
        let known = known.and_then(|held| held.original.clone());
        let Some(came) = came else { return known };
        let same = known.filter(|known| known.digest == came.digest);
        same.or_else(|| Original::of(came, id).filter(|_| self.layers().keeps_blobs()).map(Arc::new))
    }

    /// Before the record is written.
    pub(super) fn write_original(
        &self,
        id: &Digest,
        original: Option<&Original>,
        came: Option<&Came>,
    ) -> Result<(), ImageError> {
        let path = self.manifest_path(id);
        match (original, came) {
            (None, _) => Ok(store::remove(&path)?),
            (Some(original), Some(came)) if original.digest == came.digest => write_bytes(&path, &came.bytes),
            (Some(_), _) => Ok(()),
        }
    }
}

/// Of the record's image; none: it is not there, or another one's.
pub(super) fn read(path: &Path, record: &ImageRecord) -> Option<Original> {
    let digest = record.manifest.clone()?;
    let bytes = read_bytes(path, &digest)?;
    Original::of(&Came { digest, bytes }, &record.id)
}

fn read_bytes(path: &Path, digest: &Digest) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    (digest_of(digest.algorithm(), &bytes) == *digest).then_some(bytes)
}
