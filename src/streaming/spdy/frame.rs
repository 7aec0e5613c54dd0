//! Frames of SPDY/3.1: eight bytes of header, then a body of at most 2^24 - 1 bytes. Numbers are big-endian.
//!
//! ```text
//! control: 1 | version(15) | type(16) | flags(8) | length(24) | body
//! data:    0 | stream id(31)          | flags(8) | length(24) | bytes
//! ```

/// Length of the header of each frame.
pub const HEADER_BYTES: usize = 8;

/// Body of a control frame; larger ones end the connection before anything is allocated.
pub const CONTROL_LIMIT_BYTES: usize = 16 << 10;

/// On a data frame or SYN_STREAM: the sender sends no more on this stream.
pub const FLAG_FIN: u8 = 1;

const VERSION: u16 = 3;

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetStatus {
    /// Not served, or too many.
    RefusedStream = 3,
    /// Something failed here.
    InternalError = 6,
}

/// What the first eight bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Bytes of a stream follow.
    Data {
        /// The stream.
        stream: u32,
        /// See [`FLAG_FIN`].
        fin: bool,
        /// Bytes that follow.
        length: usize,
    },
    /// A control frame's body follows.
    Control {
        /// Its type.
        kind: u16,
        /// Its flags.
        flags: u8,
        /// Bytes that follow.
        length: usize,
    },
}

/// A control frame of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// A new stream; the header block is still compressed.
    SynStream {
        /// Its id.
        stream: u32,
        /// See [`FLAG_FIN`].
        fin: bool,
        /// Compressed.
        block: Vec<u8>,
    },
    /// A stream is given up.
    Reset {
        /// Its id.
        stream: u32,
    },
    /// To be sent back as it is.
    Ping {
        /// Odd when it is the client's.
        id: u32,
    },
    /// The client opens no more streams.
    GoAway,
    /// More headers; the block must pass through the decompressor to keep its state right.
    Headers {
        /// Its id.
        stream: u32,
        /// See [`FLAG_FIN`].
        fin: bool,
        /// Compressed.
        block: Vec<u8>,
    },
    /// SETTINGS, WINDOW_UPDATE and what later versions add: nothing to be done.
    Ignored,
}

/// The peer broke the rules; the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed SPDY frame")]
pub struct FrameError;

/// Parses the first eight bytes of a frame.
pub fn parse_head(bytes: [u8; HEADER_BYTES]) -> Result<Head, FrameError> {
    let [a, b, c, d, flags, l0, l1, l2] = bytes;
    let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
    if a & 0x80 == 0 {
        let stream = u32::from_be_bytes([a, b, c, d]);
        return Ok(Head::Data { stream, fin: flags & FLAG_FIN != 0, length });
    }
    if u16::from_be_bytes([a & 0x7f, b]) != VERSION || length > CONTROL_LIMIT_BYTES {
        return Err(FrameError);
    }
    Ok(Head::Control { kind: u16::from_be_bytes([c, d]), flags, length })
}

fn number(body: &[u8], at: usize) -> Result<u32, FrameError> {
    let bytes = body.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or(FrameError)?;
    Ok(u32::from_be_bytes(bytes) & 0x7fff_ffff)
}

/// Parses the body of a control frame.
pub fn parse_control(kind: u16, flags: u8, body: &[u8]) -> Result<Control, FrameError> {
    let fin = flags & FLAG_FIN != 0;
    Ok(match kind {
        1 => Control::SynStream { stream: number(body, 0)?, fin, block: body.get(10..).ok_or(FrameError)?.to_vec() },
        3 => Control::Reset { stream: number(body, 0)? },
        6 => Control::Ping { id: number(body, 0)? },
        7 => Control::GoAway,
        8 => Control::Headers { stream: number(body, 0)?, fin, block: body.get(4..).ok_or(FrameError)?.to_vec() },
        _ => Control::Ignored,
    })
}

fn control(kind: u16, flags: u8, body: &[&[u8]]) -> Vec<u8> {
    let length: usize = body.iter().map(|b| b.len()).sum();
    let mut frame = Vec::with_capacity(HEADER_BYTES + length);
    frame.extend((0x8000 | VERSION).to_be_bytes());
    frame.extend(kind.to_be_bytes());
    frame.extend((u32::from(flags) << 24 | length as u32).to_be_bytes());
    body.iter().for_each(|b| frame.extend_from_slice(b));
    frame
}

/// Accepts a stream; `block` is compressed.
pub fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control(2, 0, &[&stream.to_be_bytes(), block])
}

/// Gives a stream up.
pub fn reset(stream: u32, status: ResetStatus) -> Vec<u8> {
    control(3, 0, &[&stream.to_be_bytes(), &(status as u32).to_be_bytes()])
}

/// Answers a ping.
pub fn ping(id: u32) -> Vec<u8> {
    control(6, 0, &[&id.to_be_bytes()])
}

/// The header of a data frame of `length` bytes (below 2^24).
pub fn data_head(stream: u32, fin: bool, length: usize) -> [u8; HEADER_BYTES] {
    let mut head = [0; HEADER_BYTES];
    head[..4].copy_from_slice(&stream.to_be_bytes());
    head[4..].copy_from_slice(&(u32::from(fin) << 24 | length as u32).to_be_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(parse_head(data_head(5, true, 70_000)), Ok(Head::Data { stream: 5, fin: true, length: 70_000 }));
        let frame = ping(7);
        let (head, body) = frame.split_first_chunk::<HEADER_BYTES>().expect("a header");
        assert_eq!(parse_head(*head), Ok(Head::Control { kind: 6, flags: 0, length: 4 }));
        assert_eq!(parse_control(6, 0, body), Ok(Control::Ping { id: 7 }));
    }

    #[test]
    fn other_versions_and_oversized_control_frames_are_refused() {
        for bad in [[0x80, 2, 0, 1, 0, 0, 0, 0], [0x80, 3, 0, 4, 0, 0xff, 0xff, 0xff]] {
            assert_eq!(parse_head(bad), Err(FrameError));
        }
    }

    #[test]
    fn bodies_cut_short_are_refused() {
        for kind in [1, 3, 6, 8] {
            assert_eq!(parse_control(kind, 0, &[0, 0]), Err(FrameError), "{kind}");
        }
    }

    proptest::proptest! {
        #[test]
        fn rubbish_never_panics(head: [u8; 8], kind: u16, flags: u8, body: Vec<u8>) {
            let _ = parse_head(head);
            let _ = parse_control(kind, flags, &body);
        }
    }
}
