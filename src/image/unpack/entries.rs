//! Entries of a tar stream with PAX and GNU extensions applied: a parser only, it touches no file.

use std::io::{self, Read};

use super::error::UnpackError;
use super::header::{BLOCK_BYTES, Header, Kind};
use super::limits::{METADATA_LIMIT_BYTES, within};
use super::pax::{self, Records};
use super::sparse::{self, Piece};

/// One entry; its data is read from [`Entries`] before the next is asked for.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is; never one of the extension kinds.
    pub kind: Kind,
    /// As written.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Size of the file, holes included.
    pub size: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data belongs, for a sparse file.
    pub pieces: Option<Vec<Piece>>,
}

/// Metadata that stands in front of an entry.
#[derive(Default)]
struct Prefix {
    pax: Option<Records>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Prefix {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.path.is_none() && self.link.is_none()
    }
}

/// Reads a tar stream.
pub struct Entries<R> {
    reader: R,
    /// Data of the current entry that was not read yet.
    data: u64,
    /// After it, up to the next block.
    padding: u64,
}

impl<R: Read> Entries<R> {
    /// At the start of a stream.
    pub fn new(reader: R) -> Self {
        Self { reader, data: 0, padding: 0 }
    }

    /// The reader, wherever it is now.
    pub fn into_reader(self) -> R {
        self.reader
    }

    /// The reader, in the middle of its work.
    pub fn reader(&mut self) -> &mut R {
        &mut self.reader
    }

    /// The next entry; none at the end marker or, between entries, at the end of the stream.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut prefix = Prefix::default();
        loop {
            self.skip_data()?;
            let mut block = [0; BLOCK_BYTES];
            let header = if self.read_block(&mut block)? { Header::parse(&block)? } else { None };
            let Some(header) = header else {
                return if prefix.is_empty() { Ok(None) } else { Err(malformed("it ends after an extension header")) };
            };
            self.data = if header.kind.has_data() { header.size } else { 0 };
            self.padding = padding(self.data);
            match header.kind {
                Kind::Pax if prefix.pax.is_none() => prefix.pax = Some(pax::parse(&self.metadata()?)?),
                Kind::PaxGlobal => pax::check_global(&self.metadata()?)?,
                Kind::GnuLongName if prefix.path.is_none() => prefix.path = Some(self.long_name()?),
                Kind::GnuLongLink if prefix.link.is_none() => prefix.link = Some(self.long_name()?),
                Kind::Pax | Kind::GnuLongName | Kind::GnuLongLink => {
                    return Err(malformed("an entry has the same extension header twice"));
                }
                _ => return self.entry(header, prefix, &block).map(Some),
            }
        }
    }

    fn entry(&mut self, header: Header, prefix: Prefix, block: &[u8; BLOCK_BYTES]) -> Result<Entry, UnpackError> {
        let pax = prefix.pax.unwrap_or_default();
        if let Some(size) = pax.size.filter(|_| header.kind.has_data()) {
            self.data = size;
            self.padding = padding(size);
        }
        let mut entry = Entry {
            kind: header.kind,
            path: agreed(prefix.path, pax.path, header.path)?,
            link: agreed(prefix.link, pax.link, header.link)?,
            mode: header.mode,
            uid: pax.uid.unwrap_or(header.uid),
            gid: pax.gid.unwrap_or(header.gid),
            size: self.data,
            mtime: pax.mtime.unwrap_or((header.mtime, 0)),
            xattrs: pax.xattrs,
            pieces: None,
        };
        if header.kind == Kind::GnuSparse {
            let map = sparse::old_gnu(block, || self.metadata_block())?;
            self.make_sparse(&mut entry, map)?;
        } else if header.kind == Kind::File && !pax.sparse.is_empty() {
            let before = self.data;
            let map = sparse::pax(&pax.sparse, || self.data_block())?;
            debug_assert!(self.data <= before);
            if let Some(name) = &map.name {
                entry.path.clone_from(name);
            }
            self.make_sparse(&mut entry, map)?;
        }
        Ok(entry)
    }

    fn make_sparse(&self, entry: &mut Entry, map: sparse::Map) -> Result<(), UnpackError> {
        sparse::check(&map, self.data)?;
        entry.kind = Kind::File;
        entry.size = map.size;
        entry.pieces = Some(map.pieces);
        Ok(())
    }

    /// The data of an extension header.
    fn metadata(&mut self) -> Result<Vec<u8>, UnpackError> {
        within("bytes in one extension header", self.data, METADATA_LIMIT_BYTES)?;
        let mut bytes = vec![0; self.data as usize];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn long_name(&mut self) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.metadata()?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    /// A block between an old sparse header and its data, which the size field does not count.
    fn metadata_block(&mut self) -> Result<[u8; BLOCK_BYTES], UnpackError> {
        let mut block = [0; BLOCK_BYTES];
        self.reader.read_exact(&mut block)?;
        Ok(block)
    }

    /// A block of the current entry's data.
    fn data_block(&mut self) -> Result<[u8; BLOCK_BYTES], UnpackError> {
        let mut block = [0; BLOCK_BYTES];
        self.read_exact(&mut block)?;
        Ok(block)
    }

    fn skip_data(&mut self) -> Result<(), UnpackError> {
        let gap = self.data.saturating_add(self.padding);
        (self.data, self.padding) = (0, 0);
        if io::copy(&mut (&mut self.reader).take(gap), &mut io::sink())? < gap {
            return Err(malformed("it is cut short in an entry's data"));
        }
        Ok(())
    }

    /// False: the stream ends here.
    fn read_block(&mut self, block: &mut [u8; BLOCK_BYTES]) -> Result<bool, UnpackError> {
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.reader.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(malformed("it is cut short in a header")),
                count => filled += count,
            }
        }
        Ok(true)
    }
}

/// The current entry's data.
impl<R: Read> Read for Entries<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(malformed("it is cut short in an entry's data").into());
        }
        self.data -= count as u64;
        Ok(count)
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}

/// A name may be given by GNU's and by PAX's extension, but not differently.
fn agreed(gnu: Option<Vec<u8>>, pax: Option<Vec<u8>>, plain: Vec<u8>) -> Result<Vec<u8>, UnpackError> {
    match (gnu, pax) {
        (Some(gnu), Some(pax)) if gnu != pax => Err(malformed("an entry has two long names that differ")),
        (Some(name), _) | (None, Some(name)) => Ok(name),
        (None, None) => Ok(plain),
    }
}

fn malformed(text: &str) -> UnpackError {
    UnpackError::Malformed(text.to_owned())
}
