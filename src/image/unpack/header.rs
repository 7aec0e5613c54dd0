//! One 512-byte tar header, read strictly: a checksum that fits, numbers that are numbers.

use tar::{EntryType, Header as Block};

use super::error::UnpackError;

/// Size of a tar block.
pub const BLOCK_BYTES: usize = 512;
/// Where the checksum stands.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Another name of a file in this layer.
    HardLink,
    /// Symbolic link.
    Symlink,
    /// Directory.
    Directory,
    /// Named pipe.
    Fifo,
    /// Character or block device.
    Device,
    /// Old GNU sparse file.
    GnuSparse,
    /// PAX records for the next entry.
    Pax,
    /// PAX records for all further entries.
    PaxGlobal,
    /// The next entry's name.
    GnuLongName,
    /// The next entry's link target.
    GnuLongLink,
}

impl Kind {
    /// Whether data follows the header. The size field of the others means nothing (so read all common tools).
    pub fn has_data(self) -> bool {
        !matches!(self, Self::HardLink | Self::Symlink | Self::Directory | Self::Fifo | Self::Device)
    }
}

/// A header's fields.
#[derive(Debug, Clone)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// As written, without the NUL.
    pub path: Vec<u8>,
    /// As written, without the NUL.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Bytes of data that follow.
    pub size: u64,
    /// Seconds.
    pub mtime: i64,
}

impl Header {
    /// Reads one block; none: it is all zeros, the end marker.
    pub fn parse(bytes: &[u8; BLOCK_BYTES]) -> Result<Option<Self>, UnpackError> {
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        verify_checksum(bytes)?;
        let block = Block::from_byte_slice(bytes);
        let old = block.as_old();
        let path = block.path_bytes().into_owned();
        Ok(Some(Self {
            kind: kind(block.entry_type(), &path)?,
            link: block.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default(),
            mode: (unsigned("mode", &old.mode)? & 0o7777) as u32,
            uid: unsigned("owner", &old.uid)?,
            gid: unsigned("group", &old.gid)?,
            size: unsigned("size", &old.size)?,
            mtime: number("time", &old.mtime)?,
            path,
        }))
    }
}

fn kind(entry_type: EntryType, path: &[u8]) -> Result<Kind, UnpackError> {
    Ok(match entry_type {
        // Before ustar a directory was a file whose name ends in a slash.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Link => Kind::HardLink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char | EntryType::Block => Kind::Device,
        EntryType::Directory => Kind::Directory,
        EntryType::Fifo => Kind::Fifo,
        EntryType::GNUSparse => Kind::GnuSparse,
        EntryType::XHeader => Kind::Pax,
        EntryType::XGlobalHeader => Kind::PaxGlobal,
        EntryType::GNULongName => Kind::GnuLongName,
        EntryType::GNULongLink => Kind::GnuLongLink,
        other => return Err(malformed(format!("it has an entry of the unknown type {:#04x}", other.as_byte()))),
    })
}

fn verify_checksum(bytes: &[u8; BLOCK_BYTES]) -> Result<(), UnpackError> {
    let claimed = number("checksum", &bytes[CHECKSUM]).ok();
    let blanked = bytes.iter().enumerate().map(|(at, b)| if CHECKSUM.contains(&at) { b' ' } else { *b });
    let unsigned: i64 = blanked.clone().map(i64::from).sum();
    // Some old programs summed signed bytes.
    let signed: i64 = blanked.map(|b| i64::from(b as i8)).sum();
    if claimed == Some(unsigned) || claimed == Some(signed) {
        Ok(())
    } else {
        Err(malformed("it is no tar archive, or a damaged one: a header's checksum is wrong".into()))
    }
}

fn unsigned(what: &str, field: &[u8]) -> Result<u64, UnpackError> {
    u64::try_from(number(what, field)?).map_err(|_| malformed(format!("an entry has a negative {what}")))
}

/// Octal text, or GNU's base 256 where the first bit is set; an empty field is 0.
pub fn number(what: &str, field: &[u8]) -> Result<i64, UnpackError> {
    let error = || malformed(format!("an entry's {what} is not a number"));
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        let negative = field[0] & 0x40 != 0;
        // The marking bit is not part of the number; what stays of the first byte is sign-extended.
        let first = if negative { i64::from(field[0] as i8) } else { i64::from(field[0] & 0x7f) };
        return field[1..].iter().try_fold(first, |value, b| {
            value.checked_mul(256).and_then(|value| value.checked_add(i64::from(*b))).ok_or_else(error)
        });
    }
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    let text = field[..end].trim_ascii();
    text.iter().try_fold(0i64, |value, b| match b {
        b'0'..=b'7' => value.checked_mul(8).and_then(|value| value.checked_add(i64::from(b - b'0'))).ok_or_else(error),
        _ => Err(error()),
    })
}

fn malformed(text: String) -> UnpackError {
    UnpackError::Malformed(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"", Some(0)),
            (b"\0\0\0\0", Some(0)),
            (b"\x80\0\0\0\0\0\x01\x02", Some(258)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"0x1f\0", None),
            (b"-1\0", None),
            (b"8\0", None),
        ] {
            assert_eq!(number("test", field).ok(), value, "{field:?}");
        }
    }
}
