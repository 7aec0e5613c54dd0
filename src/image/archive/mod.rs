//! `image save` (save.rs) and `image load`: OCI layouts and docker archives, plain or compressed, from a stream that is
//! read once.
//!
//! Manifests may stand behind the layers they name, so an archive's files are first put into `spool/`, bounded; then
//! every image is unpacked from there with all its hashes checked, and only when all of them are whole do they get
//! their names.

mod docker;
mod oci;
pub mod save;
mod spool;

use std::path::Path;
use std::sync::Arc;

use tokio::io::AsyncRead;

use super::digest::Digest;
use super::layers::io_error;
use super::store::original::Came;
use super::store::{ImageNames, Store, blocking};
use super::unpack::stream::{Claim, Plain, Source, Wire, channel, pump};
use super::{Image, ImageError, ImageErrorKind, LayerPhase, LayerProgress, ProgressSink, config};

use spool::{Spool, Spooled};

/// Below the image service's root; everything in it goes at the next open.
pub const SPOOL: &str = "spool";
/// Images in one archive.
const IMAGES_LIMIT: usize = 1000;

/// One image of an archive.
#[derive(Debug)]
struct Found {
    /// As it came.
    config: Vec<u8>,
    manifest: Option<Digest>,
    /// That of this image, where `manifest` may be an index of several.
    came: Option<Came>,
    names: ImageNames,
    /// Lowest first.
    layers: Vec<FoundLayer>,
}

/// A layer of an archive; its file is missing where the archive leaves out what the reader should have.
#[derive(Debug)]
struct FoundLayer {
    name: String,
    file: Option<Spooled>,
    claim: Option<Claim>,
}

/// Loads every image of the archive. Dropping the future stops it and leaves nothing.
pub async fn load(
    store: &Store,
    root: &Path,
    archive: impl AsyncRead + Send + Unpin,
    progress: Option<ProgressSink>,
) -> Result<Vec<Arc<Image>>, ImageError> {
    let (pieces, source) = channel();
    let (store, spool) = (store.clone(), root.join(SPOOL));
    let job = tokio::spawn(blocking(move || {
        let wire = Wire::new(Source::Channel(source), None);
        load_blocking(&store, &spool, wire, &progress.unwrap_or_else(|| Arc::new(|_| ())))
    }));
    pump(archive, pieces, |_| ()).await;
    job.await.map_err(|e| ImageError::new(ImageErrorKind::Internal, format!("loading failed: {e}")))?
}

fn load_blocking(
    store: &Store,
    spool: &Path,
    wire: Wire,
    progress: &ProgressSink,
) -> Result<Vec<Arc<Image>>, ImageError> {
    let spool = Spool::fill(spool, wire)?;
    let found = if spool.find(oci::INDEX).is_some() { oci::images(&spool)? } else { docker::images(&spool)? };
    if found.is_empty() || found.len() > IMAGES_LIMIT {
        return Err(bad(format!("the archive has {} images; one to {IMAGES_LIMIT} are taken", found.len())));
    }
    let mut unpacked = Vec::new();
    let result = {
        let _hold = store.layers().hold();
        found
            .iter()
            .try_for_each(|image| unpack(store, image, progress, &mut unpacked))
            .and_then(|()| found.into_iter().map(|image| commit(store, image)).collect())
    };
    if result.is_err() {
        // Of an archive that is refused nothing stays.
        drop(store.collect_among(&unpacked));
    }
    result
}

fn unpack(store: &Store, image: &Found, progress: &ProgressSink, unpacked: &mut Vec<Digest>) -> Result<(), ImageError> {
    let diff_ids = config::validate(&image.config)?.diff_ids;
    if diff_ids.len() != image.layers.len() {
        let text = format!("the archive has {} layers of an image of {}", image.layers.len(), diff_ids.len());
        return Err(bad(text));
    }
    for (layer, diff_id) in image.layers.iter().zip(diff_ids) {
        let total_bytes = layer.file.as_ref().map_or(0, |file| file.size);
        let report = |done_bytes, phase| {
            progress(LayerProgress { digest: diff_id.to_string(), total_bytes, done_bytes, phase });
        };
        let wanted = layer.claim.as_ref().filter(|_| store.layers().keeps_blobs() && layer.file.is_some());
        let lacks_blob = wanted.is_some_and(|claim| !store.layers().contains_blob(&diff_id, &claim.digest));
        let is_here = store.layers().contains(&diff_id);
        if is_here && !lacks_blob {
            if let Some(file) = &layer.file {
                check(file, layer, &diff_id)?;
            }
            report(0, LayerPhase::Reused);
            continue;
        }
        report(0, LayerPhase::Fetching);
        let Some(file) = &layer.file else {
            return Err(bad(format!("the archive has no {:?}, which its manifest names", layer.name)));
        };
        let source = std::fs::File::open(&file.path).map_err(io_error("open", &file.path))?;
        let wire = Wire::new(Source::File(source), layer.claim.clone());
        store.layers().unpack_blocking(wire, &diff_id, &format!("layer {:?}", layer.name))?;
        if !is_here {
            unpacked.push(diff_id.clone());
        }
        report(total_bytes, LayerPhase::Done);
    }
    Ok(())
}

/// A layer that is here already: what the archive has in its place must still be that layer, or the archive is damaged.
fn check(file: &Spooled, layer: &FoundLayer, diff_id: &Digest) -> Result<(), ImageError> {
    let source = std::fs::File::open(&file.path).map_err(io_error("open", &file.path))?;
    let plain = Plain::new(Wire::new(Source::File(source), layer.claim.clone()), Some(diff_id.algorithm()));
    let checked = plain.and_then(|plain| plain.verify(Some(diff_id)));
    checked.map(|_| ()).map_err(|e| e.of(&format!("layer {:?}", layer.name)))
}

fn commit(store: &Store, image: Found) -> Result<Arc<Image>, ImageError> {
    store.commit_blocking(&image.config, image.came, image.names)
}

fn bad(message: String) -> ImageError {
    ImageError::new(ImageErrorKind::BadImage, message)
}
