//! From a stream's bytes to CRI log lines. Pure: no system call, no time of its own.
//!
//! A stream keeps what it has not seen the end of (at most [`LINE_LIMIT`] bytes, and no memory when there is nothing);
//! everything else goes straight from the input to the output, each byte copied once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

use super::Stream;
use crate::sys::pages::find_byte;

/// Most bytes of content in one log line, as in other runtimes; a longer line is split.
pub const LINE_LIMIT: usize = 16_384;

/// `2026-11-22T13:51:21.123456789Z`
const STAMP_LENGTH: usize = 30;
/// Where the fraction of the second begins in it.
const FRACTION: usize = 20;
/// The stamp, ` stdout `, the tag, and a space.
const PREFIX_LENGTH: usize = STAMP_LENGTH + 8 + 2;
/// The longest log line.
pub const LOG_LINE_LIMIT: usize = PREFIX_LENGTH + LINE_LIMIT + 1;

/// A tail with more room than this gives its memory back once it is empty.
const KEPT_TAIL: usize = 256;

/// What every line of one pump begins with, but for the tag.
#[derive(Debug, Clone)]
pub struct Prefix {
    bytes: [u8; PREFIX_LENGTH],
    /// The second since the epoch that `bytes` says; formatted anew only when it changes.
    second: Option<u64>,
}

impl Prefix {
    /// For one stream; `stamp` is to be called before it is used.
    pub fn new(stream: Stream) -> Self {
        let mut bytes = *b"0000-00-00T00:00:00.000000000Z stdout F ";
        if stream == Stream::Stderr {
            bytes[STAMP_LENGTH + 1..STAMP_LENGTH + 7].copy_from_slice(b"stderr");
        }
        Self { bytes, second: None }
    }

    /// Sets the time. A clock before 1970 or after 9999 is shown as 1970.
    pub fn stamp(&mut self, now: SystemTime) {
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        if self.second != Some(since_epoch.as_secs()) {
            self.second = Some(since_epoch.as_secs());
            self.set_second(since_epoch.as_secs());
        }
        put_number(&mut self.bytes[FRACTION..FRACTION + 9], since_epoch.subsec_nanos());
    }

    fn set_second(&mut self, second: u64) {
        let date = i64::try_from(second)
            .ok()
            .and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok())
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        put_number(&mut self.bytes[0..4], date.year().unsigned_abs());
        let parts = [u8::from(date.month()), date.day(), date.hour(), date.minute(), date.second()];
        for (index, part) in parts.into_iter().enumerate() {
            let start = 5 + 3 * index;
            put_number(&mut self.bytes[start..start + 2], u32::from(part));
        }
    }

    fn tagged(&mut self, tag: Tag) -> &[u8; PREFIX_LENGTH] {
        self.bytes[PREFIX_LENGTH - 2] = tag as u8;
        &self.bytes
    }
}

#[derive(Debug, Clone, Copy)]
enum Tag {
    Full = b'F' as isize,
    Partial = b'P' as isize,
}

fn put_number(field: &mut [u8], mut number: u32) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Log lines that wait to be written, in a buffer that is not ours. Never holds part of a line.
#[derive(Debug)]
pub struct Lines<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl<'a> Lines<'a> {
    /// Into a buffer of at least [`LOG_LINE_LIMIT`] bytes.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        debug_assert!(buffer.len() >= LOG_LINE_LIMIT, "a line would never fit");
        Self { buffer, length: 0 }
    }

    /// What is there so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// After it was written.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// False, and nothing done, when there is no room.
    fn push(&mut self, prefix: &[u8; PREFIX_LENGTH], head: &[u8], rest: &[u8]) -> bool {
        let end = self.length + PREFIX_LENGTH + head.len() + rest.len() + 1;
        let Some(line) = self.buffer.get_mut(self.length..end) else { return false };
        let (start, content) = line.split_at_mut(PREFIX_LENGTH);
        start.copy_from_slice(prefix);
        content[..head.len()].copy_from_slice(head);
        content[head.len()..head.len() + rest.len()].copy_from_slice(rest);
        content[head.len() + rest.len()] = b'\n';
        self.length = end;
        true
    }
}

/// One stream's way into the log.
#[derive(Debug)]
pub struct Formatter {
    prefix: Prefix,
    /// Not terminated so far; at most `LINE_LIMIT` bytes.
    tail: Vec<u8>,
}

impl Formatter {
    /// For one stream.
    pub fn new(stream: Stream) -> Self {
        Self { prefix: Prefix::new(stream), tail: Vec::new() }
    }

    /// The time of what is taken next.
    pub fn stamp(&mut self, now: SystemTime) {
        self.prefix.stamp(now);
    }

    /// Takes from `input` what fits into `lines`; the rest is returned, empty when all was taken.
    pub fn take<'i>(&mut self, mut input: &'i [u8], lines: &mut Lines<'_>) -> &'i [u8] {
        while !input.is_empty() {
            // A line of exactly the limit is whole: its end may be one byte further.
            let missing = LINE_LIMIT - self.tail.len();
            let window = &input[..input.len().min(missing + 1)];
            let (content, taken, tag) = match find_byte(window, b'\n') {
                Some(end) => (&window[..end], end + 1, Tag::Full),
                None if window.len() > missing => (&window[..missing], missing, Tag::Partial),
                None => {
                    self.tail.extend_from_slice(window);
                    return &[];
                }
            };
            if !lines.push(self.prefix.tagged(tag), &self.tail, content) {
                return input;
            }
            self.forget_tail();
            input = &input[taken..];
        }
        input
    }

    /// The stream has ended: what was not terminated becomes a part. False when there is no room for it.
    pub fn finish(&mut self, lines: &mut Lines<'_>) -> bool {
        let written = self.tail.is_empty() || lines.push(self.prefix.tagged(Tag::Partial), &self.tail, &[]);
        if written {
            self.forget_tail();
        }
        written
    }

    fn forget_tail(&mut self) {
        self.tail.clear();
        if self.tail.capacity() > KEPT_TAIL {
            self.tail = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAMP: &str = "2026-11-22T13:51:21.000000042Z";

    fn formatter(stream: Stream) -> Formatter {
        let mut formatter = Formatter::new(stream);
        formatter.stamp(UNIX_EPOCH + Duration::new(1_795_355_481, 42));
        formatter
    }

    /// All of the log, whatever the room.
    fn log(formatter: &mut Formatter, chunks: &[&[u8]], room: usize) -> Vec<u8> {
        let mut buffer = vec![0; room];
        let mut lines = Lines::new(&mut buffer);
        let mut log = Vec::new();
        for chunk in chunks {
            let mut rest = *chunk;
            loop {
                rest = formatter.take(rest, &mut lines);
                log.extend_from_slice(lines.as_bytes());
                lines.clear();
                if rest.is_empty() {
                    break;
                }
            }
        }
        assert!(formatter.finish(&mut lines));
        log.extend_from_slice(lines.as_bytes());
        log
    }

    #[test]
    fn lines_are_tagged_and_an_unterminated_tail_is_a_part() {
        let table: [(&[&str], &str); 6] = [
            (&["one\n"], "F one\n"),
            (&["\n\n"], "F \nF \n"),
            (&["o", "n", "e\nt", "wo\n"], "F one\nF two\n"),
            (&["tail"], "P tail\n"),
            (&["a\r\n"], "F a\r\n"),
            (&[], ""),
        ];
        for (chunks, expected) in table {
            let chunks: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.as_bytes()).collect();
            let got = log(&mut formatter(Stream::Stderr), &chunks, LOG_LINE_LIMIT);
            let prefix = format!("{STAMP} stderr ");
            assert_eq!(String::from_utf8(got).expect("text").replace(&prefix, ""), expected);
        }
    }

    #[test]
    fn a_line_longer_than_the_limit_is_split_and_one_of_the_limit_is_not() {
        for (length, parts) in [
            (LINE_LIMIT, vec![('F', LINE_LIMIT)]),
            (LINE_LIMIT + 1, vec![('P', LINE_LIMIT), ('F', 1)]),
            (3 * LINE_LIMIT, vec![('P', LINE_LIMIT), ('P', LINE_LIMIT), ('F', LINE_LIMIT)]),
        ] {
            let line = [vec![b'x'; length], vec![b'\n']].concat();
            for chunk in [1000, LINE_LIMIT, LINE_LIMIT + 1, length + 1] {
                let chunks: Vec<&[u8]> = line.chunks(chunk).collect();
                let got = log(&mut formatter(Stream::Stdout), &chunks, LOG_LINE_LIMIT);
                let got = String::from_utf8(got).expect("text");
                let seen: Vec<(char, usize)> = got.lines().map(tag_and_length).collect();
                assert_eq!(seen, parts, "{length} bytes in chunks of {chunk}");
            }
        }
    }

    fn tag_and_length(line: &str) -> (char, usize) {
        assert!(line.starts_with(&format!("{STAMP} stdout ")), "{line:.60}");
        let tag = line.as_bytes()[PREFIX_LENGTH - 2] as char;
        (tag, line.len() - PREFIX_LENGTH)
    }

    #[test]
    fn the_time_is_written_in_full_width() {
        for (seconds, nanos, expected) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_827_696, 1, "2000-02-29T12:34:56.000000001Z"),
            (4_102_444_799, 999_999_999, "2099-12-31T23:59:59.999999999Z"),
            (u64::MAX / 4, 5, "1970-01-01T00:00:00.000000005Z"),
        ] {
            let mut prefix = Prefix::new(Stream::Stdout);
            prefix.set_second(seconds);
            put_number(&mut prefix.bytes[FRACTION..FRACTION + 9], nanos);
            assert_eq!(std::str::from_utf8(&prefix.bytes[..STAMP_LENGTH]).expect("text"), expected);
        }
    }

    #[test]
    fn an_idle_stream_holds_no_memory() {
        let mut formatter = formatter(Stream::Stdout);
        let mut buffer = vec![0; LOG_LINE_LIMIT];
        let mut lines = Lines::new(&mut buffer);
        formatter.take(&[b'x'; 10_000], &mut lines);
        assert_eq!(formatter.tail.len(), 10_000);
        formatter.take(b"\n", &mut lines);
        assert_eq!(formatter.tail.capacity(), 0);
    }

    proptest! {
        /// Runs of one byte, some of them with a newline, cut anywhere.
        #[test]
        fn however_input_is_cut_its_bytes_come_back(
            runs in prop::collection::vec((any::<u8>(), 0..2 * LINE_LIMIT, any::<bool>()), 0..8),
            cut in 1..3 * LINE_LIMIT,
            room in LOG_LINE_LIMIT..3 * LOG_LINE_LIMIT,
        ) {
            let run = |(byte, length, ends): (u8, usize, bool)| {
                let mut run = vec![byte; length];
                run.extend(ends.then_some(b'\n'));
                run
            };
            let input: Vec<u8> = runs.into_iter().flat_map(run).collect();
            let chunks: Vec<&[u8]> = input.chunks(cut).collect();
            let log = log(&mut formatter(Stream::Stdout), &chunks, room);
            let mut output = Vec::new();
            for line in log.split_inclusive(|byte| *byte == b'\n') {
                let content = &line[PREFIX_LENGTH..line.len() - 1];
                prop_assert!(content.len() <= LINE_LIMIT);
                output.extend_from_slice(content);
                if line[PREFIX_LENGTH - 2] == b'F' {
                    output.push(b'\n');
                }
            }
            prop_assert_eq!(output, input);
        }
    }
}
