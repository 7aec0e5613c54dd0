//! A layer's bytes to a directory, in one pass: count, hash, decompress, hash, parse, write.
//!
//! Everything here is an attacker's bytes. Limits are in `limits`; no path of a layer is ever opened by name (`tree`);
//! the parser (`entries`) touches no file and the extractor (`extract`) parses nothing.

mod attributes;
pub mod entries;
pub mod error;
mod extract;
mod frames;
pub mod header;
mod limits;
mod path;
mod pax;
pub mod recipe;
mod sparse;
pub mod stream;
mod tree;
mod windows;

use std::fs::File;
use std::os::fd::OwnedFd;

pub use extract::Extent;
pub use tree::{OPAQUE_NAME, OpaqueMark, WHITEOUT_PREFIX};

use entries::Entries;
use error::UnpackError;
use extract::Extractor;
use recipe::Recorder;
use stream::{Plain, Wire};
use tree::LayerTree;

use super::digest::Digest;

/// Unpacks the blob `wire` into the empty directory `root` and checks that it was what it claims and that its plain
/// bytes are `diff_id`'s; writes to `recipe` what it takes to have the tar again. Blocking. After an error `root` holds
/// rubbish.
pub fn unpack(
    wire: Wire,
    diff_id: &Digest,
    root: OwnedFd,
    mark: OpaqueMark,
    recipe: File,
) -> Result<Unpacked, UnpackError> {
    let plain = Plain::new(wire, Some(diff_id.algorithm()))?;
    let mut entries = Entries::new(Recorder::new(plain, recipe)?);
    let (extent, complete) = Extractor::new(LayerTree::new(root, mark)).run(&mut entries)?;
    let mut recorder = entries.into_reader();
    recorder.drain()?;
    let (plain, recipe_bytes) = recorder.finish(complete)?;
    let plain_bytes = plain.verify(Some(diff_id))?;
    Ok(Unpacked { extent, plain_bytes, recipe_bytes })
}

/// What came of a blob.
#[derive(Debug, Clone, Copy)]
pub struct Unpacked {
    /// The tree.
    pub extent: Extent,
    /// Of the tar.
    pub plain_bytes: u64,
    /// None: the tar cannot be had again.
    pub recipe_bytes: Option<u64>,
}
