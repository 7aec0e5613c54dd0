//! A layer's bytes to a directory, in one pass: count, hash, decompress, hash, parse, write.
//!
//! Everything here is an attacker's bytes. Limits are in `limits`; no path of a layer is ever opened by name (`tree`);
//! the parser (`entries`) touches no file and the extractor (`extract`) parses nothing.

mod attributes;
pub mod entries;
pub mod error;
mod extract;
pub mod header;
mod limits;
mod path;
mod pax;
mod sparse;
pub mod stream;
mod tree;

use std::os::fd::OwnedFd;

pub use extract::Extent;
pub use tree::OpaqueMark;

use entries::Entries;
use error::UnpackError;
use extract::Extractor;
use stream::{Plain, Wire};
use tree::LayerTree;

use super::digest::Digest;

/// Unpacks the blob `wire` into the empty directory `root` and checks that it was what it claims and that its plain
/// bytes are `diff_id`'s. Blocking. After an error `root` holds rubbish.
pub fn unpack(wire: Wire, diff_id: &Digest, root: OwnedFd, mark: OpaqueMark) -> Result<Extent, UnpackError> {
    let plain = Plain::new(wire, Some(diff_id.algorithm()))?;
    let mut entries = Entries::new(plain);
    let extent = Extractor::new(LayerTree::new(root, mark)).run(&mut entries)?;
    entries.into_reader().verify(Some(diff_id))?;
    Ok(extent)
}
