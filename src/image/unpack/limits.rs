//! How much of one layer is taken. Real layers are far below each of these.

use super::error::UnpackError;

/// Plain bytes that any layer may have, however small it is compressed.
const FREE_PLAIN_BYTES: u64 = 512 << 20;
/// Above those, plain bytes for each compressed byte. Gzip reaches 1,032 with nothing but zeros; binaries and text stay
/// below 20.
const RATIO: u64 = 100;
/// Plain bytes of a layer.
const PLAIN_LIMIT_BYTES: u64 = 64 << 30;
/// Size of one file, holes included.
const FILE_LIMIT_BYTES: u64 = 1 << 40;
/// Entries of a layer. Memory does not grow with them.
const ENTRY_LIMIT: u64 = 10_000_000;

/// A path of an entry, the longest the kernel takes in one call; it bounds the depth too.
pub const PATH_LIMIT_BYTES: usize = 4095;
/// PAX or GNU metadata in front of one entry.
pub const METADATA_LIMIT_BYTES: u64 = 1 << 20;
/// Pieces of a sparse file.
pub const SPARSE_PIECE_LIMIT: usize = 65_536;
/// Links followed while one parent directory is resolved; as in the kernel.
pub const LINK_LIMIT: usize = 40;
/// Memory for directories whose times are set last; above it the older ones are set early.
pub const DEFERRED_LIMIT_BYTES: usize = 16 << 20;

/// What a layer has used up.
#[derive(Debug, Default)]
pub struct Budget {
    entries: u64,
}

impl Budget {
    /// One more entry.
    pub fn entry(&mut self) -> Result<(), UnpackError> {
        self.entries += 1;
        within("entries in one layer", self.entries, ENTRY_LIMIT)
    }

    /// A file of `bytes`, holes included.
    pub fn file(bytes: u64) -> Result<(), UnpackError> {
        within("bytes in one file", bytes, FILE_LIMIT_BYTES)
    }
}

/// Whether a stream of `compressed` bytes may hold `plain` so far.
pub fn inflation(compressed: u64, plain: u64) -> Result<(), UnpackError> {
    within("bytes in one layer", plain, PLAIN_LIMIT_BYTES)?;
    if plain > FREE_PLAIN_BYTES && plain / RATIO > compressed {
        return Err(UnpackError::Limit { what: "plain bytes for each compressed byte", limit: RATIO });
    }
    Ok(())
}

/// `value` may be `limit` at most.
pub fn within(what: &'static str, value: u64, limit: u64) -> Result<(), UnpackError> {
    if value > limit { Err(UnpackError::Limit { what, limit }) } else { Ok(()) }
}
