//! The image service: references, registries, unpacking, layers, snapshots.
//!
//! ```text
//! ROOT/layers/ALGORITHM-HEX/{tree,recipe,layer.json}   an unpacked layer by diff id; never changed once it has this name
//! ROOT/layers/ALGORITHM-HEX/blob-ALGORITHM-HEX  a compressed blob of it, where these are kept
//! ROOT/layers/.temporary-N/                     being unpacked or being removed: gone at the next open
//! ROOT/images/ALGORITHM-HEX.{config,json}       an image by its config's digest: the config as it came, names
//! ROOT/images/ALGORITHM-HEX.manifest            the manifest it came with, where blobs are kept
//! ROOT/snapshots/KEY/{snapshot.json,upper,work} the writable part of one container
//! ROOT/spool/                                   archives being loaded: gone at the next open
//! ROOT/empty/{0,1}                              empty directories below images of no or one layer
//! ROOT/below/                                   below every image: places where each container has a mount
//! ```

pub mod archive;
pub mod config;
pub mod digest;
pub mod error;
pub mod hasher;
pub mod layers;
mod lookup;
pub mod manifest;
pub mod model;
pub mod pins;
pub mod platform;
pub mod policy;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod service;
mod signal;
pub mod snapshot;
pub mod store;
pub mod unpack;
pub mod verify;

pub use error::{ImageError, ImageErrorKind};
pub use model::{
    Credentials, FilesystemUsage, Image, ImageConfig, ImageOptions, ImageUser, LayerPhase, LayerProgress, Principal,
    ProgressSink, Snapshot,
};
pub use pull::PullCounts;
pub use service::Images;
pub use snapshot::{MountPoint, Owners, Writes};
pub use verify::{Verdict, VerifiedImage, VerifiedLayer};

#[cfg(test)]
mod tests;
