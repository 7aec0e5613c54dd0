//! OCI layouts: `index.json` names manifests, everything else is `blobs/ALGORITHM/HEX`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::ImageError;
use super::super::digest::Digest;
use super::super::hasher::digest_of;
use super::super::manifest::{Descriptor, ImageManifest, MANIFEST_BYTES_MAX, Manifest};
use super::super::platform::Platform;
use super::super::reference::Reference;
use super::super::store::ImageNames;
use super::super::store::original::Came;
use super::super::unpack::stream::Claim;
use super::spool::Spool;
use super::{Found, FoundLayer, bad};

/// The list of images.
pub const INDEX: &str = "index.json";
/// A complete name, as containerd and buildkit write it.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// A name, or only a tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Indexes in indexes that are followed.
const NESTING_LIMIT: usize = 4;

/// What the shared parser leaves out: the names.
#[derive(Deserialize)]
struct Names {
    #[serde(default)]
    manifests: Vec<NamedManifest>,
}

#[derive(Deserialize)]
struct NamedManifest {
    digest: Digest,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Every image of the layout; of one that is made for several platforms, ours.
pub fn images(spool: &Spool) -> Result<Vec<Found>, ImageError> {
    let bytes = spool.read_small(INDEX, MANIFEST_BYTES_MAX)?;
    let Manifest::Index(index) = Manifest::parse(&bytes, None)? else {
        return Err(bad(format!("the archive's {INDEX} is no index")));
    };
    let named: Names = serde_json::from_slice(&bytes).map_err(|e| bad(format!("{INDEX} is malformed: {e}")))?;
    let host = Platform::host();
    let several = index.entries.len() > 1;
    let mut found: Vec<Found> = Vec::new();
    for entry in &index.entries {
        let foreign = entry.platform.as_ref().is_some_and(|platform| host.rank(platform).is_none());
        if foreign && several {
            continue;
        }
        let names = names_of(&named, &entry.descriptor.digest)?;
        match found.iter_mut().find(|image| image.manifest.as_ref() == Some(&entry.descriptor.digest)) {
            // One manifest listed under several names; those of all were taken at the first.
            Some(_) => {}
            None => found.push(image(spool, &entry.descriptor, names, &host)?),
        }
    }
    Ok(found)
}

fn names_of(named: &Names, digest: &Digest) -> Result<ImageNames, ImageError> {
    let mut names = ImageNames::default();
    let annotations = named.manifests.iter().filter(|m| m.digest == *digest).filter_map(|m| m.annotations.as_ref());
    for annotations in annotations {
        let complete = annotations.get(CONTAINERD_NAME);
        // A bare tag names nothing; the rest of the name is then the reader's business.
        let text = complete.or_else(|| annotations.get(REF_NAME).filter(|text| text.contains(['/', ':'])));
        let Some(text) = text else { continue };
        let reference: Reference = text.parse().map_err(|e| bad(format!("the archive's name is bad: {e}")))?;
        names.repo_tags.extend(reference.repo_tag());
        names.repo_digests.push(reference.repo_digest(digest));
    }
    Ok(names)
}

fn image(spool: &Spool, descriptor: &Descriptor, names: ImageNames, host: &Platform) -> Result<Found, ImageError> {
    let (manifest, came) = manifest(spool, descriptor, host)?;
    let config = small_blob(spool, &manifest.config)?;
    let layers = manifest.layers.iter().map(|layer| {
        let name = blob_name(&layer.digest);
        let claim = Claim { digest: layer.digest.clone(), size: layer.size };
        FoundLayer { file: spool.find(&name).cloned(), name, claim: Some(claim) }
    });
    let layers = layers.collect();
    Ok(Found { config, manifest: Some(descriptor.digest.clone()), came: Some(came), names, layers })
}

fn manifest(spool: &Spool, descriptor: &Descriptor, host: &Platform) -> Result<(ImageManifest, Came), ImageError> {
    let mut descriptor = descriptor.clone();
    for _ in 0..NESTING_LIMIT {
        let bytes = small_blob(spool, &descriptor)?;
        match Manifest::parse(&bytes, Some(descriptor.media_type.as_str()))? {
            Manifest::Image(image) => return Ok((image, Came { digest: descriptor.digest, bytes })),
            Manifest::Index(index) => descriptor = index.choose(host)?.clone(),
        }
    }
    Err(bad(format!("the archive has more than {NESTING_LIMIT} indexes in each other")))
}

/// A manifest or a config, which must be what its descriptor says.
fn small_blob(spool: &Spool, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
    let name = blob_name(&descriptor.digest);
    let limit = MANIFEST_BYTES_MAX.max(super::super::manifest::CONFIG_BYTES_MAX);
    let bytes = spool.read_small(&name, limit)?;
    let found = digest_of(descriptor.digest.algorithm(), &bytes);
    if found != descriptor.digest || bytes.len() as u64 != descriptor.size {
        let size = bytes.len();
        return Err(bad(format!("the archive's blob {} has the digest {found} and {size} bytes", descriptor.digest)));
    }
    Ok(bytes)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replace(':', "/"))
}
