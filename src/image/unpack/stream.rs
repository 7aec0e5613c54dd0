//! The road of a layer's bytes: async reader -> bounded channel -> [`Wire`] (counts, hashes) -> [`Plain`]
//! (decompresses, counts, hashes). What is checked is what is unpacked: there is one pass and one copy.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use super::error::UnpackError;
use super::frames::Frames;
use super::limits;
use crate::image::digest::{Algorithm, Digest};
use crate::image::hasher::Hasher;

/// Bytes that go through the channel at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that wait in the channel.
const CHUNKS: usize = 8;

/// What the async side says.
pub enum Piece {
    /// The next bytes.
    Data(Bytes),
    /// There are no more.
    End,
    /// The source failed.
    Failed(io::Error),
}

impl Piece {
    /// None: there are no more.
    fn into_bytes(self) -> Result<Option<Bytes>, UnpackError> {
        match self {
            Self::Data(bytes) => Ok(Some(bytes)),
            Self::End => Ok(None),
            Self::Failed(e) => Err(UnpackError::Source(e)),
        }
    }
}

/// A bounded channel from [`pump`] to [`Wire`].
pub fn channel() -> (mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
    mpsc::channel(CHUNKS)
}

/// Reads `source` to its end into `pieces`; ends early, without a word, when the other side is gone.
pub async fn pump<R>(mut source: R, pieces: mpsc::Sender<Piece>, mut on_bytes: impl FnMut(u64))
where
    R: AsyncRead + Unpin,
{
    let mut buffer = BytesMut::new();
    loop {
        // The receiver drops its chunks as it goes, so this takes the same memory again.
        buffer.reserve(CHUNK_BYTES.saturating_sub(buffer.len()));
        let last = match source.read_buf(&mut buffer).await {
            Ok(0) => Some(Piece::End),
            Ok(count) => {
                on_bytes(count as u64);
                None
            }
            Err(e) => Some(Piece::Failed(e)),
        };
        if (last.is_some() || buffer.len() >= CHUNK_BYTES)
            && !buffer.is_empty()
            && pieces.send(Piece::Data(buffer.split().freeze())).await.is_err()
        {
            return;
        }
        if let Some(last) = last {
            let _ = pieces.send(last).await;
            return;
        }
    }
}

/// Where a blob's bytes come from, on the blocking side.
pub enum Source {
    /// From [`pump`].
    Channel(mpsc::Receiver<Piece>),
    /// A file of ours.
    File(File),
}

impl Source {
    fn next(&mut self) -> Result<Option<Bytes>, UnpackError> {
        match self {
            Self::Channel(pieces) => pieces.blocking_recv().ok_or(UnpackError::Stopped)?.into_bytes(),
            Self::File(file) => {
                let mut bytes = vec![0; CHUNK_BYTES];
                let count = file.read(&mut bytes).map_err(UnpackError::Source)?;
                bytes.truncate(count);
                Ok((count > 0).then(|| bytes.into()))
            }
        }
    }
}

/// What a blob must turn out to be.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Of its compressed bytes.
    pub digest: Digest,
    /// Its compressed size.
    pub size: u64,
}

/// The blob as it came: counted, hashed, and never read past its claimed size.
pub struct Wire {
    source: Source,
    /// Taken from the source, not looked at: what the channel holds at most.
    ahead: VecDeque<Piece>,
    chunk: Bytes,
    ended: bool,
    count: u64,
    hasher: Option<Hasher>,
    claim: Option<Claim>,
    copy: Option<File>,
}

impl Wire {
    /// Reads `source`, which must be what `claim` says.
    pub fn new(source: Source, claim: Option<Claim>) -> Self {
        let hasher = claim.as_ref().map(|claim| Hasher::new(claim.digest.algorithm()));
        Self { source, ahead: VecDeque::new(), chunk: Bytes::new(), ended: false, count: 0, hasher, claim, copy: None }
    }

    /// What it must turn out to be.
    pub fn claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// Writes everything that comes to `copy` too, as it came.
    pub fn keeping(mut self, copy: File) -> Self {
        self.copy = Some(copy);
        self
    }

    fn refill(&mut self) -> Result<(), UnpackError> {
        while self.chunk.is_empty() && !self.ended {
            let next = match self.ahead.pop_front() {
                Some(piece) => piece.into_bytes(),
                None => self.source.next(),
            };
            let Some(bytes) = next? else {
                self.ended = true;
                return Ok(());
            };
            self.count += bytes.len() as u64;
            if let Some(claim) = self.claim.as_ref().filter(|claim| self.count > claim.size) {
                return Err(UnpackError::Malformed(format!("it is longer than the {} bytes it should be", claim.size)));
            }
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&bytes);
            }
            if let Some(copy) = &mut self.copy {
                let error = |source| UnpackError::Write { action: "write", path: "the kept blob".to_owned(), source };
                copy.write_all(&bytes).map_err(error)?;
            }
            self.chunk = bytes;
        }
        Ok(())
    }

    /// Whether whoever sent the bytes has gone before their end: nobody wants what comes of them.
    pub fn is_abandoned(&mut self) -> bool {
        let Source::Channel(pieces) = &mut self.source else { return false };
        if self.ended || !pieces.is_closed() {
            return false;
        }
        while let Ok(piece) = pieces.try_recv() {
            self.ahead.push_back(piece);
        }
        !matches!(self.ahead.back(), Some(Piece::End | Piece::Failed(_)))
    }

    /// The bytes at the front, up to `wanted` of them if the blob is that long, without taking them.
    pub fn peek(&mut self, wanted: usize) -> Result<&[u8], UnpackError> {
        self.refill()?;
        while self.chunk.len() < wanted && !self.ended {
            let front = std::mem::take(&mut self.chunk);
            self.refill()?;
            self.chunk = [front, std::mem::take(&mut self.chunk)].concat().into();
        }
        Ok(&self.chunk[..wanted.min(self.chunk.len())])
    }

    /// After everything was read: that it was what it claimed to be.
    fn verify(mut self) -> Result<(), UnpackError> {
        loop {
            self.chunk.clear();
            self.refill()?;
            if self.chunk.is_empty() {
                break;
            }
        }
        let (Some(claim), Some(hasher)) = (self.claim, self.hasher) else { return Ok(()) };
        if self.count < claim.size {
            let text = format!("it is cut short: {} of {} bytes", self.count, claim.size);
            return Err(UnpackError::Malformed(text));
        }
        let digest = hasher.finish();
        if digest != claim.digest {
            return Err(UnpackError::Malformed(format!("its bytes have the digest {digest}, not {}", claim.digest)));
        }
        Ok(())
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Wire {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.refill()?;
        Ok(&self.chunk)
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
    }
}

enum Decoder {
    Gzip(Box<MultiGzDecoder<Wire>>),
    Zstd(Box<Frames>),
    Plain(Box<Wire>),
}

impl Decoder {
    /// By the first bytes, whatever the media type says: the hashes leave no room for a second reading.
    fn new(mut wire: Wire) -> Result<Self, UnpackError> {
        let magic = wire.peek(6)?;
        match magic {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(wire)))),
            // A frame, or a skippable frame as zstd:chunked has them.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Ok(Self::Zstd(Box::new(Frames::new(wire)?)))
            }
            b"\xfd7zXZ\0" | [b'B', b'Z', b'h', ..] => {
                Err(UnpackError::Malformed("it is compressed with xz or bzip2: gzip, zstd and plain are taken".into()))
            }
            _ => Ok(Self::Plain(Box::new(wire))),
        }
    }

    fn wire(&self) -> &Wire {
        match self {
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zstd(frames) => frames.wire(),
            Self::Plain(wire) => wire,
        }
    }

    fn into_wire(self) -> Wire {
        match self {
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(frames) => frames.into_wire(),
            Self::Plain(wire) => *wire,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(frames) => frames.read(buffer),
            Self::Plain(wire) => wire.read(buffer),
        }
    }
}

/// The blob, decompressed, counted and hashed.
pub struct Plain {
    decoder: Decoder,
    hasher: Option<Hasher>,
    count: u64,
}

impl Plain {
    /// Recognises the compression; hashes the plain bytes with `algorithm`, if any.
    pub fn new(wire: Wire, algorithm: Option<Algorithm>) -> Result<Self, UnpackError> {
        Ok(Self { decoder: Decoder::new(wire)?, hasher: algorithm.map(Hasher::new), count: 0 })
    }

    /// Reads what is left and checks both hashes; answers how many plain bytes there were.
    pub fn verify(mut self, plain: Option<&Digest>) -> Result<u64, UnpackError> {
        let mut rest = vec![0; CHUNK_BYTES];
        while self.read(&mut rest)? > 0 {}
        self.decoder.into_wire().verify()?;
        let (Some(expected), Some(hasher)) = (plain, self.hasher) else { return Ok(self.count) };
        let found = hasher.finish();
        if found != *expected {
            return Err(UnpackError::Malformed(format!("its plain bytes have the digest {found}, not {expected}")));
        }
        Ok(self.count)
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.count += count as u64;
        limits::inflation(self.decoder.wire().count, self.count)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        Ok(count)
    }
}
