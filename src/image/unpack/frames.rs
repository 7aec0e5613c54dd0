//! A zstd stream, frame by frame: before each its window is known, and memory for it is there or waited for.

use std::io::{self, BufRead};

use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use super::error::UnpackError;
use super::stream::Wire;
use super::windows::{FREE_WINDOW_BYTES, Grant, WINDOW_LIMIT_BYTES, WINDOW_LOG_LIMIT, WINDOWS};

/// A frame's first bytes.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Longest header of a frame, the magic number included.
const HEADER_BYTES_MAX: usize = 18;
/// Smallest window, as a power of two.
const WINDOW_LOG_MIN: u32 = 10;

/// Decompresses; see the module.
pub struct Frames {
    wire: Wire,
    context: DCtx<'static>,
    /// For a window of the context above what is free.
    grant: Option<Grant>,
    in_frame: bool,
}

impl Frames {
    /// Of a stream that begins with a frame.
    pub fn new(wire: Wire) -> Result<Self, UnpackError> {
        Ok(Self { wire, context: context()?, grant: None, in_frame: false })
    }

    /// What it reads.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The rest, as it came.
    pub fn into_wire(self) -> Wire {
        self.wire
    }

    /// The next plain bytes; none at the end of the last frame.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.begin()? {
                return Ok(0);
            }
            let input = self.wire.fill_buf()?;
            let has_ended = input.is_empty();
            let mut from = InBuffer::around(input);
            let mut to = OutBuffer::around(&mut *buffer);
            let hint = self.context.decompress_stream(&mut to, &mut from).map_err(failed)?;
            let (read, written) = (from.pos(), to.pos());
            self.wire.consume(read);
            self.in_frame = hint != 0;
            if written > 0 {
                return Ok(written);
            }
            if has_ended && self.in_frame {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Sees to memory for the next frame. False: there is none.
    fn begin(&mut self) -> Result<bool, UnpackError> {
        let header = self.wire.peek(HEADER_BYTES_MAX)?;
        if header.is_empty() {
            return Ok(false);
        }
        let window = window_bytes(header);
        if window > WINDOW_LIMIT_BYTES {
            return Err(UnpackError::Malformed(format!(
                "a zstd frame of it looks {window} bytes back, and at most {WINDOW_LIMIT_BYTES} are taken: compress it without \
                 --long, at a level up to 20"
            )));
        }
        self.in_frame = true;
        let granted = self.grant.as_ref().map_or(FREE_WINDOW_BYTES, Grant::bytes);
        let is_kept = window <= FREE_WINDOW_BYTES && self.grant.is_none();
        if is_kept || (window > FREE_WINDOW_BYTES && window <= granted) {
            return Ok(true);
        }
        // The old window goes first: nobody holds one while he waits for another.
        self.context = context()?;
        self.grant = None;
        if window > FREE_WINDOW_BYTES {
            let wire = &mut self.wire;
            let grant = WINDOWS.grant(window, || !wire.is_abandoned());
            self.grant = Some(grant.ok_or(UnpackError::Stopped)?);
        }
        Ok(true)
    }
}

fn context() -> Result<DCtx<'static>, UnpackError> {
    let memory = || UnpackError::Source(io::ErrorKind::OutOfMemory.into());
    let mut context = DCtx::try_create().ok_or_else(memory)?;
    context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_LIMIT)).map_err(failed)?;
    Ok(context)
}

fn failed(code: zstd_safe::ErrorCode) -> io::Error {
    io::Error::other(zstd_safe::get_error_name(code))
}

/// How far back a frame refers, by its header (RFC 8878, 3.1.1.1); of what is no frame with data 0.
fn window_bytes(header: &[u8]) -> u64 {
    let Some([descriptor, rest @ ..]) = header.strip_prefix(&MAGIC) else { return 0 };
    let is_single = descriptor & 0x20 != 0;
    if !is_single {
        let Some(byte) = rest.first() else { return 0 };
        let base = 1u64 << (WINDOW_LOG_MIN + u32::from(byte >> 3));
        return base + base / 8 * u64::from(byte & 7);
    }
    // The whole content is the window; its size stands behind the dictionary's number.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let width = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let Some(size) = rest.get(dictionary..dictionary + width) else { return 0 };
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(size);
    // Two bytes count from 256 on.
    u64::from_le_bytes(bytes).saturating_add(if width == 2 { 256 } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn windows_are_read_from_headers_of_every_shape() {
        for log in [10, 17, 19, 23, 27] {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
            encoder.window_log(log).expect("a window");
            encoder.write_all(&[7; 4096]).expect("memory");
            encoder.flush().expect("memory");
            assert_eq!(window_bytes(&encoder.finish().expect("a frame")), 1 << log, "{log}");
        }
        for length in [0, 1, 255, 256, 65_791, 65_792, 400_000] {
            let frame = zstd::bulk::compress(&vec![7; length], 1).expect("a frame");
            assert_eq!(window_bytes(&frame), length as u64, "{length}");
        }
        for odd in [&b""[..], &MAGIC, b"\x28\xb5\x2f\xfd\x00", b"\x28\xb5\x2f\xfd\xe3\x01", b"\x50\x2a\x4d\x18\0\0\0\0"]
        {
            assert_eq!(window_bytes(odd), 0, "{odd:?}");
        }
        assert!(window_bytes(b"\x28\xb5\x2f\xfd\x00\xff") > WINDOW_LIMIT_BYTES);
    }
}
