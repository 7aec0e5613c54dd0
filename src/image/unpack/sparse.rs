//! Maps of sparse files: GNU's old form and the three of PAX (0.0, 0.1, 1.0).

use super::error::UnpackError;
use super::header::{BLOCK_BYTES, number};
use super::limits::{METADATA_LIMIT_BYTES, SPARSE_PIECE_LIMIT, within};
use super::pax::digits;

/// A stretch of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// A sparse file's shape.
#[derive(Debug, Default)]
pub struct Map {
    /// Ascending.
    pub pieces: Vec<Piece>,
    /// Of the file, holes included.
    pub size: u64,
    /// The file's real name, where the map has it.
    pub name: Option<Vec<u8>>,
}

/// Bytes of one entry of an old map: two numbers of 12.
const OLD_PIECE_BYTES: usize = 24;

/// Reads the map of an `S` header; `more` gives the blocks that continue it.
pub fn old_gnu(
    block: &[u8; BLOCK_BYTES],
    mut more: impl FnMut() -> Result<[u8; BLOCK_BYTES], UnpackError>,
) -> Result<Map, UnpackError> {
    let size = u64::try_from(number("size", &block[483..495])?).map_err(|_| bad())?;
    let mut map = Map { size, ..Map::default() };
    old_pieces(&mut map, &block[386..386 + 4 * OLD_PIECE_BYTES])?;
    let mut continued = block[482] != 0;
    while continued {
        let next = more()?;
        old_pieces(&mut map, &next[..21 * OLD_PIECE_BYTES])?;
        continued = next[504] != 0;
    }
    Ok(map)
}

fn old_pieces(map: &mut Map, table: &[u8]) -> Result<(), UnpackError> {
    for fields in table.chunks_exact(OLD_PIECE_BYTES).take_while(|fields| fields[0] != 0) {
        let field = |bytes| u64::try_from(number("map", bytes)?).map_err(|_| bad());
        push(map, field(&fields[..12])?, field(&fields[12..])?)?;
    }
    Ok(())
}

/// Reads the map of a PAX header's `GNU.sparse.*` records; `block` gives the entry's data, where version 1.0 has it.
pub fn pax(
    records: &[(Vec<u8>, Vec<u8>)],
    block: impl FnMut() -> Result<[u8; BLOCK_BYTES], UnpackError>,
) -> Result<Map, UnpackError> {
    let last = |key: &str| records.iter().rev().find(|(k, _)| k == key.as_bytes()).map(|(_, v)| v.as_slice());
    let size = last("realsize").or(last("size")).and_then(digits).ok_or_else(bad)?;
    let mut map = Map { size, name: last("name").map(<[u8]>::to_vec), ..Map::default() };
    if map.name.as_ref().is_some_and(|name| name.is_empty() || name.contains(&0)) {
        return Err(bad());
    }
    match (last("major"), last("minor")) {
        (Some(b"1"), Some(b"0")) => in_data(&mut map, block)?,
        (None, None) | (Some(b"0"), Some(b"0" | b"1")) => match last("map") {
            Some(list) => pairs(&mut map, list.split(|b| *b == b','))?,
            None => {
                let repeated = records.iter().filter(|(k, _)| k == b"offset" || k == b"numbytes");
                pairs(&mut map, repeated.map(|(_, v)| v.as_slice()))?;
            }
        },
        _ => return Err(bad()),
    }
    Ok(map)
}

fn pairs<'a>(map: &mut Map, numbers: impl Iterator<Item = &'a [u8]>) -> Result<(), UnpackError> {
    let mut offset = None;
    for text in numbers.filter(|text| !text.is_empty()) {
        let value = digits(text).ok_or_else(bad)?;
        match offset.take() {
            None => offset = Some(value),
            Some(offset) => push(map, offset, value)?,
        }
    }
    if offset.is_some() { Err(bad()) } else { Ok(()) }
}

/// Version 1.0: a count and that many pairs, a decimal number a line, at the front of the data, padded to a block.
fn in_data(
    map: &mut Map,
    mut block: impl FnMut() -> Result<[u8; BLOCK_BYTES], UnpackError>,
) -> Result<(), UnpackError> {
    let mut text = Vec::new();
    let mut line = |text: &mut Vec<u8>, taken: &mut u64| loop {
        if let Some(end) = text.iter().position(|b| *b == b'\n') {
            let rest = text.split_off(end + 1);
            let number = digits(&std::mem::replace(text, rest)[..end]);
            return number.ok_or_else(bad);
        }
        *taken += BLOCK_BYTES as u64;
        within("bytes in one sparse map", *taken, METADATA_LIMIT_BYTES)?;
        text.extend_from_slice(&block()?);
    };
    let mut taken = 0;
    let count = line(&mut text, &mut taken)?;
    within("pieces of one sparse file", count, SPARSE_PIECE_LIMIT as u64)?;
    for _ in 0..count {
        let offset = line(&mut text, &mut taken)?;
        let length = line(&mut text, &mut taken)?;
        push(map, offset, length)?;
    }
    Ok(())
}

fn push(map: &mut Map, offset: u64, length: u64) -> Result<(), UnpackError> {
    within("pieces of one sparse file", map.pieces.len() as u64 + 1, SPARSE_PIECE_LIMIT as u64)?;
    map.pieces.push(Piece { offset, length });
    Ok(())
}

/// Pieces ascend, do not overlap, lie in the file, and are as long together as the `data` that follows.
pub fn check(map: &Map, data: u64) -> Result<(), UnpackError> {
    let mut end = 0u64;
    let mut total = 0u64;
    for piece in &map.pieces {
        let next = piece.offset.checked_add(piece.length).ok_or_else(bad)?;
        if piece.offset < end || next > map.size {
            return Err(bad());
        }
        end = next;
        total += piece.length;
    }
    if total == data { Ok(()) } else { Err(bad()) }
}

fn bad() -> UnpackError {
    UnpackError::Malformed("it has a sparse file with a malformed map".to_owned())
}
