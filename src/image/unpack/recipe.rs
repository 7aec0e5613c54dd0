//! What a layer's tar holds besides the contents of its files, kept so that the tar can be written again byte for byte.
//!
//! ```text
//! layers/ALGORITHM-HEX/recipe: a zstd stream of pieces, numbers little endian
//!   1 length:u32 bytes                                    as in the tar: headers, padding, the end marker
//!   2 length:u16 path offset:u64 length:u64               so many bytes of that file of the tree, from that offset
//!   0                                                     the end
//! ```
//!
//! A layer that replaces a file of its own has no recipe, because the tree does not hold the first one; nor has one
//! whose recipe would pass [`RECIPE_LIMIT_BYTES`].

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

use super::error::{UnpackError, quoted};
use super::path::LayerPath;
use super::tree::{LayerTree, OpaqueMark};

/// Bytes of a recipe on disk: what ten million entries need.
const RECIPE_LIMIT_BYTES: u64 = 256 << 20;
/// Bytes of the tar in one piece, and what is copied of a file at once.
const PIECE_BYTES: usize = 64 << 10;
/// Headers repeat themselves; more work saves little.
const LEVEL: i32 = 1;
/// 512 KiB: what a layer's encoder may take of memory.
const WINDOW_LOG: u32 = 19;

const END: u8 = 0;
const AS_WRITTEN: u8 = 1;
const OF_FILE: u8 = 2;

/// Reads through, and writes the recipe of what passes.
pub struct Recorder<R> {
    reader: R,
    writer: Option<Writer>,
    in_file: bool,
}

impl<R> Recorder<R> {
    /// The recipe of `reader` goes to `file`.
    pub fn new(reader: R, file: File) -> Result<Self, UnpackError> {
        Ok(Self { reader, writer: Some(Writer::new(file).map_err(failed)?), in_file: false })
    }

    /// The next `length` bytes are those of the file `path` from `offset`.
    pub fn begin_file(&mut self, path: &[u8], offset: u64, length: u64) -> Result<(), UnpackError> {
        self.in_file = true;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        if length > 0 {
            writer.of_file(path, offset, length).map_err(failed)?;
        }
        self.give_up_if_too_long();
        Ok(())
    }

    /// They were read.
    pub fn end_file(&mut self) {
        self.in_file = false;
    }

    /// After the last byte. The number is the recipe's size; none: there is none, and the file means nothing.
    pub fn finish(mut self, complete: bool) -> Result<(R, Option<u64>), UnpackError> {
        let size = match self.writer.take().filter(|_| complete) {
            Some(writer) => Some(writer.finish().map_err(failed)?),
            None => None,
        };
        Ok((self.reader, size))
    }

    fn give_up_if_too_long(&mut self) {
        if self.writer.as_ref().is_some_and(|writer| writer.written() > RECIPE_LIMIT_BYTES) {
            self.writer = None;
        }
    }
}

impl<R: Read> Recorder<R> {
    /// Takes what is left.
    pub fn drain(&mut self) -> Result<(), UnpackError> {
        let mut buffer = vec![0; PIECE_BYTES];
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }
}

impl<R: Read> Read for Recorder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        if !self.in_file
            && let Some(writer) = &mut self.writer
        {
            writer.as_written(&buffer[..count]).map_err(failed)?;
            self.give_up_if_too_long();
        }
        Ok(count)
    }
}

struct Writer {
    out: zstd::stream::write::Encoder<'static, Counted>,
    pending: Vec<u8>,
}

struct Counted {
    file: BufWriter<File>,
    count: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Writer {
    fn new(file: File) -> io::Result<Self> {
        let counted = Counted { file: BufWriter::new(file), count: 0 };
        let mut out = zstd::stream::write::Encoder::new(counted, LEVEL)?;
        out.window_log(WINDOW_LOG)?;
        Ok(Self { out, pending: Vec::with_capacity(PIECE_BYTES) })
    }

    fn written(&self) -> u64 {
        self.out.get_ref().count
    }

    fn as_written(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(PIECE_BYTES) {
            if self.pending.len() + part.len() > PIECE_BYTES {
                self.put_pending()?;
            }
            self.pending.extend_from_slice(part);
        }
        Ok(())
    }

    fn put_pending(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.out.write_all(&[AS_WRITTEN])?;
        self.out.write_all(&(self.pending.len() as u32).to_le_bytes())?;
        self.out.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }

    fn of_file(&mut self, path: &[u8], offset: u64, length: u64) -> io::Result<()> {
        self.put_pending()?;
        let path_length = u16::try_from(path.len()).map_err(|_| io::Error::other("a path longer than any layer's"))?;
        self.out.write_all(&[OF_FILE])?;
        self.out.write_all(&path_length.to_le_bytes())?;
        self.out.write_all(path)?;
        self.out.write_all(&offset.to_le_bytes())?;
        self.out.write_all(&length.to_le_bytes())
    }

    fn finish(mut self) -> io::Result<u64> {
        self.put_pending()?;
        self.out.write_all(&[END])?;
        let mut counted = self.out.finish()?;
        counted.flush()?;
        Ok(counted.count)
    }
}

/// Why a tar could not be written again.
#[derive(Debug, thiserror::Error)]
pub enum AgainError {
    /// Recipe or tree are not what they were.
    #[error("{0}")]
    Damaged(String),
    /// Where it goes does not take it.
    #[error("{0}")]
    Output(io::Error),
}

/// Writes the tar that was unpacked into `tree` to `out`. Whether it is the same is for the caller to hash.
pub fn write_again(recipe: File, tree: OwnedFd, out: &mut impl Write) -> Result<(), AgainError> {
    let mut recipe = zstd::stream::read::Decoder::with_buffer(BufReader::new(recipe)).map_err(unreadable)?;
    recipe.window_log_max(WINDOW_LOG).map_err(unreadable)?;
    // The mark is only for writing, and nothing is written.
    let mut tree = LayerTree::new(tree, OpaqueMark::User);
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let [tag] = array(&mut recipe)?;
        match tag {
            END => return Ok(()),
            AS_WRITTEN => {
                let length = u32::from_le_bytes(array(&mut recipe)?) as usize;
                let bytes = buffer.get_mut(..length).ok_or_else(|| damaged("its recipe has a piece too long"))?;
                recipe.read_exact(bytes).map_err(unreadable)?;
                out.write_all(bytes).map_err(AgainError::Output)?;
            }
            OF_FILE => {
                let mut path = vec![0; usize::from(u16::from_le_bytes(array(&mut recipe)?))];
                recipe.read_exact(&mut path).map_err(unreadable)?;
                let offset = u64::from_le_bytes(array(&mut recipe)?);
                let length = u64::from_le_bytes(array(&mut recipe)?);
                copy(&mut tree, &path, offset, length, &mut buffer, out)?;
            }
            _ => return Err(damaged("its recipe has a piece of no known kind")),
        }
    }
}

fn array<const N: usize>(recipe: &mut impl Read) -> Result<[u8; N], AgainError> {
    let mut bytes = [0; N];
    recipe.read_exact(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn copy(
    tree: &mut LayerTree,
    path: &[u8],
    offset: u64,
    mut left: u64,
    buffer: &mut [u8],
    out: &mut impl Write,
) -> Result<(), AgainError> {
    let wrong = |problem: &str| damaged(&format!("its file {} {problem}", quoted(path)));
    let mut file = open(tree, path).map_err(|error| wrong(&format!("cannot be opened: {error}")))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(wrong("is no file any more"));
    }
    file.seek(SeekFrom::Start(offset)).map_err(|error| wrong(&error.to_string()))?;
    while left > 0 {
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match file.read(&mut buffer[..wanted]).map_err(|error| wrong(&format!("cannot be read: {error}")))? {
            0 => return Err(wrong("is shorter than it was")),
            count => {
                out.write_all(&buffer[..count]).map_err(AgainError::Output)?;
                left -= count as u64;
            }
        }
    }
    Ok(())
}

fn open(tree: &mut LayerTree, path: &[u8]) -> Result<File, UnpackError> {
    let path = LayerPath::parse(path)?;
    let Some((parent, name)) = path.split() else { return Err(UnpackError::Malformed("it is the root".to_owned())) };
    let parent = tree.existing_parent(parent)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(parent.as_fd(), name, flags, Mode::empty()).map_err(UnpackError::write("open", name))?;
    Ok(File::from(file))
}

fn failed(source: io::Error) -> UnpackError {
    UnpackError::Write { action: "write", path: "the layer's recipe".to_owned(), source }
}

fn unreadable(error: io::Error) -> AgainError {
    damaged(&format!("its recipe cannot be read: {error}"))
}

fn damaged(text: &str) -> AgainError {
    AgainError::Damaged(text.to_owned())
}
