//! Name/value blocks: `u32 count`, then for each `u32 length, name, u32 length, value`, big-endian, compressed with
//! zlib and the protocol's dictionary; the compression state lives as long as the connection.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The dictionary that the protocol gives to both sides (SPDY/3, 2.6.10.1).
static DICTIONARY: &[u8] = include_bytes!("dictionary.bin");

/// Bytes of one block after decompression. A kubelet's blocks have about 200.
const BLOCK_LIMIT_BYTES: usize = 16 << 10;

/// Names in one block.
const NAMES_LIMIT: usize = 64;

/// Name and value pairs, names in lower case.
pub type Headers = Vec<(String, String)>;

/// The value of `name`.
pub fn get<'h>(headers: &'h Headers, name: &str) -> Option<&'h str> {
    headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
}

/// The peer's block is malformed or beyond the limits; the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed or oversized SPDY header block")]
pub struct HeaderError;

/// Decompresses the blocks of one direction.
pub struct HeaderReader(Decompress);

impl Default for HeaderReader {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl HeaderReader {
    /// The pairs of one block.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut plain = Vec::with_capacity(1024);
        let start = self.0.total_in();
        loop {
            let consumed = usize::try_from(self.0.total_in() - start).map_err(|_| HeaderError)?;
            let before = plain.len();
            match self.0.decompress_vec(&block[consumed..], &mut plain, FlushDecompress::Sync) {
                Ok(Status::Ok | Status::BufError) => {}
                Ok(Status::StreamEnd) => return Err(HeaderError),
                Err(e) if e.needs_dictionary().is_some() => {
                    self.0.set_dictionary(DICTIONARY).map_err(|_| HeaderError)?;
                    continue;
                }
                Err(_) => return Err(HeaderError),
            }
            if plain.len() > BLOCK_LIMIT_BYTES {
                return Err(HeaderError);
            }
            let consumed = usize::try_from(self.0.total_in() - start).map_err(|_| HeaderError)?;
            if plain.len() == plain.capacity() {
                plain.reserve(1024);
            } else if consumed == block.len() {
                return Ok(plain);
            } else if plain.len() == before {
                return Err(HeaderError);
            }
        }
    }
}

/// Parses a plain block.
pub fn parse(mut plain: &[u8]) -> Result<Headers, HeaderError> {
    fn number(plain: &mut &[u8]) -> Result<usize, HeaderError> {
        let (head, rest) = plain.split_first_chunk::<4>().ok_or(HeaderError)?;
        *plain = rest;
        usize::try_from(u32::from_be_bytes(*head)).map_err(|_| HeaderError)
    }
    fn text(plain: &mut &[u8]) -> Result<String, HeaderError> {
        let length = number(plain)?;
        let bytes = plain.get(..length).ok_or(HeaderError)?;
        *plain = &plain[length..];
        String::from_utf8(bytes.to_vec()).map_err(|_| HeaderError)
    }
    let count = number(&mut plain)?;
    if count > NAMES_LIMIT {
        return Err(HeaderError);
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut plain)?.to_ascii_lowercase();
        headers.push((name, text(&mut plain)?));
    }
    Ok(headers)
}

/// Compresses the blocks of one direction.
pub struct HeaderWriter(Compress);

impl Default for HeaderWriter {
    fn default() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(DICTIONARY).expect("a fresh compressor takes a dictionary");
        Self(compress)
    }
}

impl HeaderWriter {
    /// The block of `headers`.
    pub fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        let number = |plain: &mut Vec<u8>, n: usize| plain.extend((n as u32).to_be_bytes());
        number(&mut plain, headers.len());
        for (name, value) in headers {
            for text in [name, value] {
                number(&mut plain, text.len());
                plain.extend(text.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let start = self.0.total_in();
        loop {
            let consumed = (self.0.total_in() - start) as usize;
            // Compression into a vector with room left cannot fail.
            let _ = self.0.compress_vec(&plain[consumed..], &mut block, FlushCompress::Sync);
            if block.len() < block.capacity() {
                return block;
            }
            block.reserve(256);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_one_connection_are_read_back_in_order() {
        let (mut writer, mut reader) = (HeaderWriter::default(), HeaderReader::default());
        for stream in ["error", "stdin", "stdout"] {
            let headers = vec![("streamtype".to_owned(), stream.to_owned()), ("port".to_owned(), "80".repeat(300))];
            assert_eq!(reader.read(&writer.write(&headers)), Ok(headers));
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut writer = HeaderWriter::default();
        let block = writer.write(&vec![("a".to_owned(), "x".repeat(1 << 20))]);
        assert!(block.len() < 16 << 10);
        assert_eq!(HeaderReader::default().read(&block), Err(HeaderError));
    }

    #[test]
    fn counts_and_lengths_are_not_taken_at_their_word() {
        for plain in [&[][..], &[0xff; 4][..], &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff][..], &[0, 0, 0, 65][..]] {
            assert_eq!(parse(plain), Err(HeaderError), "{plain:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn rubbish_never_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes);
            let _ = HeaderReader::default().read(&bytes);
        }
    }
}
