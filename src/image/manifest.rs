//! Manifests and indexes of OCI images and of Docker's schema 2, read once into types that the rest may rely on.
//!
//! These bytes are an attacker's. A manifest is what its content type says and nothing else: a document that could
//! be read as a manifest by one reader and as an index by the other is refused, as is one whose own `mediaType`
//! differs from the declared one. `urls` of foreign layers are not even read: blobs come from the registry only.

use serde::Deserialize;
use std::collections::BTreeMap;

use super::digest::Digest;
use super::platform::Platform;
use super::{ImageError, ImageErrorKind};

/// Longest manifest or index, the distribution specification's own limit.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Longest image config; histories of hundreds of steps stay far below.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Most layers of an image; overlayfs stacks 500.
pub const LAYERS_MAX: usize = 500;
/// Most entries of an index.
pub const INDEX_ENTRIES_MAX: usize = 1000;
/// Compressed bytes of all layers together: 1 TiB.
pub const IMAGE_BYTES_MAX: u64 = 1 << 40;
/// What an error quotes of an image's text.
const QUOTED_LENGTH_MAX: usize = 100;

/// A manifest that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or fields of a wrong type.
    #[error("the manifest is malformed: {0}")]
    Malformed(String),
    /// Schema 1 or from the future.
    #[error(
        "the manifest has schema version {0}, and only 2 is known; rebuild or convert the image with a current tool"
    )]
    SchemaVersion(i64),
    /// One document, two meanings.
    #[error("the manifest is ambiguous: {0}")]
    Ambiguous(String),
    /// An artifact, a Helm chart, an encrypted layer.
    #[error("{what} has the media type {media_type:?}, which no container can be made of")]
    NotAnImage {
        /// Which part.
        what: &'static str,
        /// As written.
        media_type: String,
    },
    /// A named limit.
    #[error("the manifest names {what}, more than the limit of {limit}")]
    TooMuch {
        /// How much of what.
        what: String,
        /// Largest allowed.
        limit: u64,
    },
    /// Nothing in an index that could run here.
    #[error("the image is not made for {wanted}; it is made for: {offered}")]
    NoPlatform {
        /// This machine.
        wanted: String,
        /// What the index lists.
        offered: String,
    },
}

impl From<ManifestError> for ImageError {
    fn from(error: ManifestError) -> Self {
        let kind = match error {
            ManifestError::NoPlatform { .. } => ImageErrorKind::NotFound,
            _ => ImageErrorKind::BadImage,
        };
        Self { kind, message: error.to_string() }
    }
}

/// How a layer's tar is packed. A claim: readers trust the stream's first bytes instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// Media types that mean something here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MediaType {
    /// OCI index.
    OciIndex,
    /// Docker manifest list.
    DockerIndex,
    /// OCI image manifest.
    OciManifest,
    /// Docker schema 2 manifest.
    DockerManifest,
    /// OCI image config.
    OciConfig,
    /// Docker image config.
    DockerConfig,
    /// A tar of any compression; foreign ones are layers like others.
    Layer(Compression),
    /// Unknown.
    Other(String),
}

/// Text and meaning; the first text of a meaning is how it is written.
const MEDIA_TYPES: [(&str, MediaType); 18] = {
    use Compression::{Gzip, None, Zstd};
    use MediaType::*;
    [
        ("application/vnd.oci.image.index.v1+json", OciIndex),
        ("application/vnd.docker.distribution.manifest.list.v2+json", DockerIndex),
        ("application/vnd.oci.image.manifest.v1+json", OciManifest),
        ("application/vnd.docker.distribution.manifest.v2+json", DockerManifest),
        ("application/vnd.oci.image.config.v1+json", OciConfig),
        ("application/vnd.docker.container.image.v1+json", DockerConfig),
        // Written by old releases of Docker for configs.
        ("application/octet-stream", DockerConfig),
        ("application/vnd.oci.image.layer.v1.tar", Layer(None)),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Layer(Gzip)),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Layer(Zstd)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", Layer(None)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Layer(Gzip)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Layer(Zstd)),
        ("application/vnd.docker.image.rootfs.diff.tar", Layer(None)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Layer(Gzip)),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", Layer(Zstd)),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", Layer(None)),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Layer(Gzip)),
    ]
};

impl MediaType {
    /// Of a `mediaType` field or a `Content-Type` header (parameters are dropped).
    pub fn parse(text: &str) -> Self {
        let essence = text.split(';').next().unwrap_or_default().trim();
        match MEDIA_TYPES.iter().find(|(known, _)| known.eq_ignore_ascii_case(essence)) {
            Some((_, media_type)) => media_type.clone(),
            None => Self::Other(quoted(essence)),
        }
    }

    /// How it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(text) => text,
            known => MEDIA_TYPES.iter().find(|(_, m)| m == known).map_or("", |(text, _)| text),
        }
    }

    /// An index of either kind.
    pub fn is_index(&self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerIndex)
    }

    /// A manifest of either kind, not an index.
    pub fn is_manifest(&self) -> bool {
        matches!(self, Self::OciManifest | Self::DockerManifest)
    }
}

/// What names a blob: its digest, its exact size and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What it claims to be.
    pub media_type: MediaType,
    /// Of its bytes.
    pub digest: Digest,
    /// Exact number of its bytes.
    pub size: u64,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// The image config: a JSON of at most [`CONFIG_BYTES_MAX`].
    pub config: Descriptor,
    /// Lowest first, at most [`LAYERS_MAX`].
    pub layers: Vec<Descriptor>,
}

/// One entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// A manifest or another index.
    pub descriptor: Descriptor,
    /// What it is made for, where it says so.
    pub platform: Option<Platform>,
}

/// The same image for several platforms. Attestations and artifacts are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageIndex {
    /// In the index's order.
    pub entries: Vec<IndexEntry>,
}

/// What a registry or an archive answers for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One image.
    Image(ImageManifest),
    /// Several.
    Index(ImageIndex),
}

impl Manifest {
    /// Reads one. `declared` is the content type or the media type of the descriptor that led here; registries that
    /// answer `text/plain` or the like leave it to the document.
    pub fn parse(bytes: &[u8], declared: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(too_much(format!("{} bytes", bytes.len()), MANIFEST_BYTES_MAX));
        }
        let raw: RawManifest =
            serde_json::from_slice(bytes).map_err(|e| ManifestError::Malformed(quoted(&e.to_string())))?;
        if raw.schema_version != 2 {
            return Err(ManifestError::SchemaVersion(raw.schema_version));
        }
        match raw.meaning(declared)? {
            media_type if media_type.is_index() => raw.into_index().map(Self::Index),
            _ => raw.into_image().map(Self::Image),
        }
    }
}

impl ImageIndex {
    /// The entry that suits `host` best; an entry without a platform only where no other fits.
    pub fn choose(&self, host: &Platform) -> Result<&Descriptor, ManifestError> {
        let best = self
            .entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| {
                let rank = match &entry.platform {
                    Some(platform) => host.rank(platform)?,
                    None => u32::MAX,
                };
                Some(((rank, index), entry))
            })
            .min_by_key(|(rank, _)| *rank);
        best.map(|(_, entry)| &entry.descriptor).ok_or_else(|| ManifestError::NoPlatform {
            wanted: host.to_string(),
            offered: quoted(
                &self
                    .entries
                    .iter()
                    .filter_map(|e| e.platform.as_ref())
                    .map(Platform::to_string)
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    #[serde(default)]
    schema_version: i64,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    // Only of schema 1; its presence beside the others makes a document ambiguous.
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Option<Platform>,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

impl RawManifest {
    /// What this document is, where its three witnesses (declared type, own type, structure) agree.
    fn meaning(&self, declared: Option<&str>) -> Result<MediaType, ManifestError> {
        let ambiguous = |text: String| Err(ManifestError::Ambiguous(text));
        let of_index = self.manifests.is_some();
        let of_image = self.layers.is_some() || self.config.is_some();
        if (of_index && of_image) || self.fs_layers.is_some() {
            return ambiguous("it has the fields of more than one kind of manifest".to_owned());
        }
        let declared = declared.map(MediaType::parse).filter(|m| m.is_index() || m.is_manifest());
        let own = self.media_type.as_deref().filter(|text| !text.is_empty()).map(MediaType::parse);
        if let (Some(declared), Some(own)) = (&declared, &own)
            && declared != own
        {
            return ambiguous(format!("it was sent as {:?} and calls itself {:?}", declared.as_str(), own.as_str()));
        }
        let by_structure = if of_index { MediaType::OciIndex } else { MediaType::OciManifest };
        let meaning = own.or(declared).unwrap_or(by_structure);
        if !meaning.is_index() && !meaning.is_manifest() {
            return Err(ManifestError::NotAnImage { what: "the manifest", media_type: meaning.as_str().to_owned() });
        }
        if meaning.is_index() != of_index {
            return ambiguous(format!("its fields are not those of {:?}", meaning.as_str()));
        }
        Ok(meaning)
    }

    fn into_image(self) -> Result<ImageManifest, ManifestError> {
        let missing = |field: &str| ManifestError::Malformed(format!("it has no {field}"));
        let config = self.config.ok_or_else(|| missing("config"))?.into_descriptor();
        if !matches!(config.media_type, MediaType::OciConfig | MediaType::DockerConfig) {
            let media_type = config.media_type.as_str().to_owned();
            return Err(ManifestError::NotAnImage { what: "the image's config", media_type });
        }
        if config.size > CONFIG_BYTES_MAX {
            return Err(too_much(format!("a config of {} bytes", config.size), CONFIG_BYTES_MAX));
        }
        let layers = self.layers.ok_or_else(|| missing("layers"))?;
        if layers.len() > LAYERS_MAX {
            return Err(too_much(format!("{} layers", layers.len()), LAYERS_MAX as u64));
        }
        let layers: Vec<_> = layers.into_iter().map(RawDescriptor::into_descriptor).collect();
        if let Some(other) = layers.iter().find(|layer| !matches!(layer.media_type, MediaType::Layer(_))) {
            return Err(ManifestError::NotAnImage {
                what: "a layer",
                media_type: other.media_type.as_str().to_owned(),
            });
        }
        let total = layers.iter().try_fold(0_u64, |sum, layer| sum.checked_add(layer.size));
        match total {
            Some(total) if total <= IMAGE_BYTES_MAX => Ok(ImageManifest { config, layers }),
            _ => Err(too_much("layers of exabytes".to_owned(), IMAGE_BYTES_MAX)),
        }
    }

    fn into_index(self) -> Result<ImageIndex, ManifestError> {
        let manifests = self.manifests.unwrap_or_default();
        if manifests.len() > INDEX_ENTRIES_MAX {
            return Err(too_much(format!("{} manifests", manifests.len()), INDEX_ENTRIES_MAX as u64));
        }
        let entries = manifests
            .into_iter()
            .filter(RawDescriptor::may_be_an_image)
            .map(|raw| IndexEntry { platform: raw.platform.clone(), descriptor: raw.into_descriptor() });
        Ok(ImageIndex { entries: entries.filter(|e| e.descriptor.media_type.leads_to_an_image()).collect() })
    }
}

impl MediaType {
    fn leads_to_an_image(&self) -> bool {
        self.is_index() || self.is_manifest()
    }
}

impl RawDescriptor {
    /// Build tools list provenance and the like beside images, marked in one of these ways.
    fn may_be_an_image(&self) -> bool {
        let attests =
            self.annotations.as_ref().is_some_and(|annotations| annotations.contains_key("vnd.docker.reference.type"));
        let unknown = self.platform.as_ref().is_some_and(|p| p.os == "unknown" || p.architecture == "unknown");
        !attests && !unknown && self.artifact_type.as_deref().is_none_or(str::is_empty)
    }

    fn into_descriptor(self) -> Descriptor {
        Descriptor { media_type: MediaType::parse(&self.media_type), digest: self.digest, size: self.size }
    }
}

fn too_much(what: String, limit: u64) -> ManifestError {
    ManifestError::TooMuch { what, limit }
}

fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_LENGTH_MAX).collect()
}

#[cfg(test)]
mod tests;
