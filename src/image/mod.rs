//! The image service: references, registries, unpacking, layers, snapshots.
//!
//! ```text
//! ROOT/layers/ALGORITHM-HEX/{tree,layer.json}   an unpacked layer by diff id; never changed once it has this name
//! ROOT/layers/.temporary-N/                     being unpacked or being removed: gone at the next open
//! ROOT/images/ALGORITHM-HEX.json                an image by its config's digest: config, names, layers
//! ROOT/snapshots/KEY/{snapshot.json,upper,work} the writable part of one container
//! ROOT/empty/{0,1}                              empty directories below images of no or one layer
//! ```

pub mod digest;
pub mod error;
pub mod layers;
pub mod manifest;
pub mod model;
pub mod platform;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod service;
pub mod store;

pub use error::{ImageError, ImageErrorKind};
pub use model::{
    Credentials, FilesystemUsage, Image, ImageConfig, ImageOptions, ImageUser, LayerPhase, LayerProgress, Principal,
    ProgressSink, Snapshot,
};
pub use service::Images;
