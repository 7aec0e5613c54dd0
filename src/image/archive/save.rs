//! `image save`: images as one archive, written while their layers are read from their trees.
//!
//! Layers are plain and have their own diff ids, byte for byte (`unpack::recipe`), and configs are as they came, so an
//! image keeps its id. Manifests are made here, unless everything that an image came with was kept (`store::original`):
//! then an OCI layout has that manifest and its compressed blobs, which a registry may have already. Nothing is written
//! anywhere else on the way.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Arc;

use serde_json::json;

use super::super::digest::{Algorithm, Digest};
use super::super::hasher::{Hasher, digest_of};
use super::super::manifest::{Compression, Descriptor, MediaType};
use super::super::store::Store;
use super::super::store::original::Original;
use super::super::unpack::recipe::AgainError;
use super::super::{Image, ImageError, ImageErrorKind};
use super::oci::{CONTAINERD_NAME, INDEX, REF_NAME};

/// Blocks of a tar.
const BLOCK_BYTES: u64 = 512;
/// At the end of a tar.
const END_BYTES: usize = 1024;
/// What a reader of an OCI layout looks at first.
const LAYOUT: (&str, &str) = ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);

/// Where an OCI layout has everything else.
const BLOBS: &str = "blobs/";

/// How an archive is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `index.json` and `blobs/`.
    Oci,
    /// `manifest.json`, configs and layers.
    Docker,
}

/// An image on its way out.
struct Leaving {
    image: Arc<Image>,
    id: Digest,
    config: Vec<u8>,
    original: Option<(Arc<Original>, Vec<u8>)>,
    layers: Vec<LeavingLayer>,
}

#[derive(Clone)]
struct LeavingLayer {
    diff_id: Digest,
    /// Of what is written: the diff id, or the compressed blob's digest.
    digest: Digest,
    size: u64,
}

/// Writes the images that `names` mean, each once, with all their names. Blocking.
pub fn save(store: &Store, names: &[String], format: Format, out: &mut impl Write) -> Result<(), ImageError> {
    // Taken before the first look: what is here now is here until the end.
    let _hold = store.layers().hold();
    let images = leaving(store, names, format)?;
    let mut archive = Archive { out };
    match format {
        Format::Oci => archive.oci_documents(&images)?,
        Format::Docker => archive.docker_documents(&images)?,
    }
    let mut written = BTreeSet::new();
    for layer in images.iter().flat_map(|image| &image.layers) {
        if written.insert(&layer.digest) {
            let name = match format {
                Format::Oci => blob_name(&layer.digest),
                Format::Docker => docker_layer(&layer.digest),
            };
            archive.layer(store, &name, layer)?;
        }
    }
    archive.put(&[0; END_BYTES])?;
    archive.out.flush().map_err(unwritten)
}

fn leaving(store: &Store, names: &[String], format: Format) -> Result<Vec<Leaving>, ImageError> {
    let mut images: Vec<Leaving> = Vec::new();
    for name in names {
        let Some(image) = store.find(name)? else {
            let message = format!("there is no image {name:?}: `cricket image list` lists them");
            return Err(ImageError::new(ImageErrorKind::NotFound, message));
        };
        if images.iter().all(|known| known.image.id != image.id) {
            images.push(one(store, image, format)?);
        }
    }
    Ok(images)
}

fn one(store: &Store, image: Arc<Image>, format: Format) -> Result<Leaving, ImageError> {
    let digest = |text: &String| {
        text.parse::<Digest>().map_err(|error| ImageError::new(ImageErrorKind::Internal, error.to_string()))
    };
    let original = store.original(&image).filter(|_| format == Format::Oci);
    let mut layers = Vec::new();
    for (number, text) in image.layers.iter().enumerate() {
        let diff_id = digest(text)?;
        if !store.layers().contains(&diff_id) {
            return Err(damaged(&diff_id, "it is missing"));
        }
        if let Some(original) = &original {
            let Descriptor { digest, size, .. } = original.layers[number].clone();
            layers.push(LeavingLayer { diff_id, digest, size });
            continue;
        }
        let size = store.layers().plain_bytes(&diff_id).ok_or_else(|| without_recipe(&image, &diff_id))?;
        layers.push(LeavingLayer { digest: diff_id.clone(), diff_id, size });
    }
    let original = match original {
        Some(original) => Some((original.clone(), store.manifest_bytes(&image, &original)?)),
        None => None,
    };
    Ok(Leaving { id: digest(&image.id)?, config: store.config_bytes(&image)?, original, image, layers })
}

fn without_recipe(image: &Image, diff_id: &Digest) -> ImageError {
    let name = image.repo_tags.first().unwrap_or(&image.id);
    let message = format!(
        "{name} cannot be saved: its layer {diff_id} was unpacked by an earlier cricket, or has a file twice; in the first \
         case remove the image and pull or load it again"
    );
    ImageError::new(ImageErrorKind::Busy, message)
}

struct Archive<'a, W> {
    out: &'a mut W,
}

impl<W: Write> Archive<'_, W> {
    fn oci_documents(&mut self, images: &[Leaving]) -> Result<(), ImageError> {
        let mut entries = Vec::new();
        let mut documents: Vec<(Digest, Vec<u8>)> = Vec::new();
        for image in images {
            let (media_type, digest, manifest) = manifest(image);
            let descriptor = json!({
                "mediaType": media_type.as_str(), "digest": digest.to_string(), "size": manifest.len(),
            });
            for tag in &image.image.repo_tags {
                let mut named = descriptor.clone();
                // The first is read by containerd and Docker, the second by skopeo and Podman.
                named["annotations"] = json!({CONTAINERD_NAME: tag, REF_NAME: tag});
                entries.push(named);
            }
            if image.image.repo_tags.is_empty() {
                entries.push(descriptor);
            }
            documents.push((digest, manifest));
            documents.push((image.id.clone(), image.config.clone()));
        }
        let index =
            json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": entries}).to_string();
        self.file(LAYOUT.0, LAYOUT.1.as_bytes())?;
        self.file(INDEX, index.as_bytes())?;
        // skopeo makes directories that have no entry as root's, which an ordinary user may not.
        let layers = images.iter().flat_map(|image| &image.layers).map(|layer| &layer.digest);
        let blobs = documents.iter().map(|(digest, _)| digest).chain(layers).map(blob_name);
        let parents = blobs.filter_map(|name| Some(format!("{}/", name.rsplit_once('/')?.0)));
        self.directory(BLOBS)?;
        parents.collect::<BTreeSet<_>>().iter().try_for_each(|parent| self.directory(parent))?;
        documents.iter().try_for_each(|(digest, bytes)| self.file(&blob_name(digest), bytes))
    }

    fn docker_documents(&mut self, images: &[Leaving]) -> Result<(), ImageError> {
        let entries = images.iter().map(|image| {
            let layers: Vec<String> = image.layers.iter().map(|layer| docker_layer(&layer.digest)).collect();
            json!({"Config": docker_config(image), "RepoTags": image.image.repo_tags, "Layers": layers})
        });
        let manifest = serde_json::Value::from_iter(entries).to_string();
        self.file(super::docker::MANIFEST, manifest.as_bytes())?;
        images.iter().try_for_each(|image| self.file(&docker_config(image), &image.config))
    }

    fn directory(&mut self, name: &str) -> Result<(), ImageError> {
        self.entry(tar::EntryType::Directory, name, 0, 0o755)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
        self.header(name, bytes.len() as u64)?;
        self.put(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn layer(&mut self, store: &Store, name: &str, layer: &LeavingLayer) -> Result<(), ImageError> {
        let LeavingLayer { diff_id, digest, size } = layer;
        self.header(name, *size)?;
        let mut checked = Checked { out: &mut *self.out, hasher: Hasher::new(digest.algorithm()), left: *size };
        if store.layers().blob_bytes(diff_id, digest).is_some() {
            let mut blob = store.layers().open_blob(diff_id, digest)?;
            io::copy(&mut blob, &mut checked).map_err(unwritten)?;
        } else {
            store.layers().write_again(diff_id, &mut checked).map_err(|error| match error {
                AgainError::Damaged(problem) => damaged(diff_id, &problem),
                AgainError::Output(error) => unwritten(error),
            })?;
        }
        if checked.left > 0 || checked.hasher.finish() != *digest {
            return Err(damaged(diff_id, "its files are not what they were"));
        }
        self.pad(*size)
    }

    fn header(&mut self, name: &str, size: u64) -> Result<(), ImageError> {
        self.entry(tar::EntryType::Regular, name, size, 0o644)
    }

    fn entry(&mut self, kind: tar::EntryType, name: &str, size: u64, mode: u32) -> Result<(), ImageError> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).map_err(unwritten)?;
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.put(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> Result<(), ImageError> {
        let padding = (size.wrapping_neg() % BLOCK_BYTES) as usize;
        self.put(&[0; BLOCK_BYTES as usize][..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.out.write_all(bytes).map_err(unwritten)
    }
}

/// Hashes what passes, and lets no more pass than was promised in the header.
struct Checked<'a, W> {
    out: &'a mut W,
    hasher: Hasher,
    left: u64,
}

impl<W: Write> Write for Checked<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return Err(io::Error::other("a layer is larger than it was: `cricket image verify` says more"));
        };
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.left = left;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn manifest(image: &Leaving) -> (MediaType, Digest, Vec<u8>) {
    if let Some((original, bytes)) = &image.original {
        return (original.media_type.clone(), original.digest.clone(), bytes.clone());
    }
    let layer_type = MediaType::Layer(Compression::None);
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|LeavingLayer { digest, size, .. }| {
            json!({"mediaType": layer_type.as_str(), "digest": digest.to_string(), "size": size})
        })
        .collect();
    let config = json!({
        "mediaType": MediaType::OciConfig.as_str(), "digest": image.id.to_string(), "size": image.config.len(),
    });
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MediaType::OciManifest.as_str(), "config": config, "layers": layers})
            .to_string()
            .into_bytes();
    (MediaType::OciManifest, digest_of(Algorithm::Sha256, &manifest), manifest)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replace(':', "/"))
}

fn docker_layer(diff_id: &Digest) -> String {
    format!("{}.tar", diff_id.hex())
}

fn docker_config(image: &Leaving) -> String {
    format!("{}.json", image.id.hex())
}

fn damaged(diff_id: &Digest, problem: &str) -> ImageError {
    let message =
        format!("layer {diff_id} is damaged: {problem}; `cricket image verify` says which images to pull again");
    ImageError::new(ImageErrorKind::BadImage, message)
}

fn unwritten(error: io::Error) -> ImageError {
    ImageError::new(ImageErrorKind::Internal, format!("the archive cannot be written: {error}"))
}
