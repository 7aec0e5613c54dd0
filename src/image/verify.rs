//! `image verify`: every layer is put together again from its tree and its recipe, and hashed. That is the digest which
//! the image's config names, so nothing that was changed since escapes.
//!
//! A damaged layer on which no container stands is taken for missing from then on: the next pull or load of an image
//! with it fetches it anew. One that is in use stays as it is until its containers are gone. Compressed blobs that are
//! kept are read too; no container stands on those.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use super::digest::Digest;
use super::hasher::Hasher;
use super::store::Store;
use super::unpack::recipe::AgainError;
use super::{Image, ImageError, ImageErrorKind};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it was unpacked.
    Whole,
    /// It cannot be compared.
    Unknown,
    /// It is not what it was.
    Damaged,
}

/// A layer that was looked at.
#[derive(Debug, Clone)]
pub struct VerifiedLayer {
    /// Which.
    pub diff_id: String,
    /// What was found.
    pub verdict: Verdict,
    /// More of it, where it is not whole.
    pub detail: String,
}

/// An image whose layers were looked at.
#[derive(Debug, Clone)]
pub struct VerifiedImage {
    /// Which.
    pub image: Arc<Image>,
    /// Of its worst layer.
    pub verdict: Verdict,
    /// Its damaged layers.
    pub damaged: Vec<String>,
}

/// Looks at the images that `names` mean, at all without a name. Every layer is looked at once and told to `report`,
/// which answers whether to go on. Blocking.
pub fn verify(
    store: &Store,
    names: &[String],
    report: &dyn Fn(VerifiedLayer) -> bool,
) -> Result<Vec<VerifiedImage>, ImageError> {
    let _hold = store.layers().hold();
    let mut layers: BTreeMap<String, Verdict> = BTreeMap::new();
    let mut verified = Vec::new();
    for image in chosen(store, names)? {
        for text in &image.layers {
            if layers.contains_key(text) {
                continue;
            }
            let found = layer(store, text)?;
            layers.insert(text.clone(), found.verdict);
            if !report(found) {
                return Err(ImageError::new(ImageErrorKind::Internal, "nobody waits for the answer any more"));
            }
        }
        let verdicts = image.layers.iter().filter_map(|text| Some((text, *layers.get(text)?)));
        let verdict = verdicts.clone().map(|(_, verdict)| verdict).max().unwrap_or(Verdict::Whole);
        let damaged = verdicts.filter(|(_, v)| *v == Verdict::Damaged).map(|(text, _)| text.clone()).collect();
        verified.push(VerifiedImage { image, verdict, damaged });
    }
    Ok(verified)
}

fn chosen(store: &Store, names: &[String]) -> Result<Vec<Arc<Image>>, ImageError> {
    if names.is_empty() {
        return Ok(store.list());
    }
    let find = |name: &String| {
        let missing = || format!("there is no image {name:?}: `cricket image list` lists them");
        store.find(name)?.ok_or_else(|| ImageError::new(ImageErrorKind::NotFound, missing()))
    };
    names.iter().map(find).collect()
}

fn layer(store: &Store, text: &str) -> Result<VerifiedLayer, ImageError> {
    let diff_id: Digest = text.parse().map_err(|e| ImageError::new(ImageErrorKind::Internal, format!("{e}")))?;
    let told = |verdict, detail: String| VerifiedLayer { diff_id: text.to_owned(), verdict, detail };
    if !store.layers().contains(&diff_id) {
        return Ok(told(Verdict::Damaged, "it is missing, or was found damaged before".to_owned()));
    }
    let blobs = store.layers().verify_blobs(&diff_id)?;
    if let Some(blob) = blobs.first() {
        tracing::warn!("blob {blob} of layer {diff_id} was damaged, and is removed");
        let detail =
            format!("its compressed blob {blob} was not what it was, and is removed; the next pull fetches it again");
        return Ok(told(Verdict::Damaged, detail));
    }
    if store.layers().plain_bytes(&diff_id).is_none() {
        let detail = "it was unpacked by an earlier cricket, or has a file twice";
        return Ok(told(Verdict::Unknown, detail.to_owned()));
    }
    let mut hashing = Hashing(Hasher::new(diff_id.algorithm()));
    let problem = match store.layers().write_again(&diff_id, &mut hashing) {
        Ok(()) if hashing.0.finish() == diff_id => return Ok(told(Verdict::Whole, String::new())),
        Ok(()) => "its files are not what they were".to_owned(),
        Err(AgainError::Damaged(problem)) => problem,
        Err(AgainError::Output(error)) => error.to_string(),
    };
    let advice = match store.condemn(&diff_id)? {
        true => "the next pull fetches it again",
        false => "containers stand on it: remove them, then verify again",
    };
    tracing::warn!("layer {diff_id} is damaged: {problem}");
    Ok(told(Verdict::Damaged, format!("{problem}; {advice}")))
}

struct Hashing(Hasher);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
