//! Docker archives: `manifest.json` lists the config, the names and the layer files of each image.

use serde::Deserialize;

use super::super::ImageError;
use super::super::digest::{Algorithm, Digest};
use super::super::hasher::digest_of;
use super::super::manifest::{CONFIG_BYTES_MAX, LAYERS_MAX, MANIFEST_BYTES_MAX};
use super::super::reference::Reference;
use super::super::store::ImageNames;
use super::spool::Spool;
use super::{Found, FoundLayer, bad};

/// The list of images.
pub const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Every image of the archive.
pub fn images(spool: &Spool) -> Result<Vec<Found>, ImageError> {
    if spool.find(MANIFEST).is_none() {
        return Err(bad("it is no image archive: it has neither index.json (OCI) nor manifest.json (docker)".into()));
    }
    let bytes = spool.read_small(MANIFEST, MANIFEST_BYTES_MAX)?;
    let images: Vec<RawImage> =
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("the archive's {MANIFEST} is malformed: {e}")))?;
    images.into_iter().map(|raw| image(spool, raw)).collect()
}

fn image(spool: &Spool, raw: RawImage) -> Result<Found, ImageError> {
    let config = spool.read_small(&raw.config, CONFIG_BYTES_MAX)?;
    verify_name(&raw.config, &config)?;
    let layers = raw.layers.unwrap_or_default();
    if layers.len() > LAYERS_MAX {
        return Err(bad(format!("an image of the archive has {} layers; {LAYERS_MAX} can be stacked", layers.len())));
    }
    let layers = layers.into_iter().map(|name| FoundLayer { file: spool.find(&name).cloned(), name, claim: None });
    let mut names = ImageNames::default();
    for tag in raw.repo_tags.unwrap_or_default() {
        let reference: Reference = tag.parse().map_err(|e| bad(format!("the archive's name is bad: {e}")))?;
        names.repo_tags.extend(reference.repo_tag());
    }
    Ok(Found { config, manifest: None, came: None, names, layers: layers.collect() })
}

/// Where the config's file bears its hash as a name, it must be that.
fn verify_name(name: &str, config: &[u8]) -> Result<(), ImageError> {
    let stem = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    match format!("sha256:{stem}").parse::<Digest>() {
        Ok(digest) if digest != digest_of(Algorithm::Sha256, config) => {
            Err(bad(format!("the archive's config {name:?} does not have the digest it is named after")))
        }
        _ => Ok(()),
    }
}
