//! Reading a container's log (CRI's format: `TIME STREAM TAG CONTENT`), to its end or for as long as it grows, over
//! rotations.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::async_fd;

/// Read at once.
const BLOCK_BYTES: usize = 64 << 10;

/// Longest line that is kept while its end is awaited; a runtime splits at 16 KiB, so a longer one is no log.
const LINE_LIMIT_BYTES: usize = 1 << 20;

/// Room for the events of one read.
const EVENTS_BYTES: usize = 4096;

/// A line of a log.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    stderr: bool,
    /// Ends a line of the container's output (tag F); else more of it follows (tag P).
    whole: bool,
    content: &'a [u8],
}

/// Understands a line without its newline; none if it is not one of a log.
fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let (_time, stream, tag) = (fields.next()?, fields.next()?, fields.next()?);
    let stderr = match stream {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    // Tags are separated by colons; the first is the one that says whether the line is whole.
    let whole = tag.split(|byte| *byte == b':').next()? == b"F";
    Some(Line { stderr, whole, content: fields.next().unwrap_or_default() })
}

/// A log that is being read.
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    pending: Vec<u8>,
    timestamps: bool,
}

impl LogFile {
    /// The log at `path`, which need not be there yet; only its last `tail` lines, if given.
    pub fn open(path: &Path, tail: Option<usize>, timestamps: bool) -> io::Result<Self> {
        let mut log = Self { path: path.to_owned(), file: None, pending: Vec::new(), timestamps };
        log.reopen()?;
        if let (Some(file), Some(count)) = (&mut log.file, tail) {
            seek_to_tail(file, count)?;
        }
        Ok(log)
    }

    /// Prints what is there; goes on with the next file where the log was rotated.
    pub fn print_rest(&mut self) -> io::Result<()> {
        loop {
            self.print_file()?;
            if !self.reopen()? {
                return Ok(());
            }
        }
    }

    fn print_file(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let count = file.read(&mut block)?;
            if count == 0 {
                return Ok(());
            }
            self.pending.extend_from_slice(&block[..count]);
            let end = self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            for line in self.pending[..end].split_inclusive(|byte| *byte == b'\n') {
                print(&line[..line.len() - 1], self.timestamps)?;
            }
            self.pending.drain(..end);
            if self.pending.len() > LINE_LIMIT_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line of the log does not end"));
            }
        }
    }

    /// Opens the file that is at the path now; false if it is the one that is open.
    fn reopen(&mut self) -> io::Result<bool> {
        let fresh = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        let inode = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        if let Some(open) = &self.file
            && inode(open)? == inode(&fresh)?
        {
            return Ok(false);
        }
        self.file = Some(fresh);
        self.pending.clear();
        Ok(true)
    }
}

fn print(line: &[u8], timestamps: bool) -> io::Result<()> {
    let Some(parsed) = parse(line) else { return Ok(()) };
    let mut text = Vec::with_capacity(line.len() + 1);
    if timestamps {
        text.extend(line.iter().take_while(|byte| **byte != b' '));
        text.push(b' ');
    }
    text.extend_from_slice(parsed.content);
    if parsed.whole {
        text.push(b'\n');
    }
    super::output::write(parsed.stderr, &text)
}

/// Moves to where the last `count` lines begin, reading backwards.
fn seek_to_tail(file: &mut File, count: usize) -> io::Result<()> {
    let mut at = file.metadata()?.len();
    // The newline that ends the last line is not the end of the one before it.
    let mut wanted = count + 1;
    let mut block = vec![0; BLOCK_BYTES];
    while at > 0 {
        let size = at.min(BLOCK_BYTES as u64);
        at -= size;
        file.seek(SeekFrom::Start(at))?;
        let block = &mut block[..size as usize];
        file.read_exact(block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            wanted -= 1;
            if wanted == 0 {
                file.seek(SeekFrom::Start(at + index as u64 + 1))?;
                return Ok(());
            }
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(())
}

/// Prints the log as it grows, until `end` is done and the rest is printed; answers what `end` does.
pub async fn follow<T>(mut log: LogFile, end: impl Future<Output = T>) -> anyhow::Result<T> {
    let directory = log.path.parent().unwrap_or(Path::new("/")).to_owned();
    let changes = watch(&directory).with_context(|| format!("cannot watch {}", directory.display()))?;
    tokio::pin!(end);
    loop {
        log.print_rest().with_context(|| format!("log {}", log.path.display()))?;
        tokio::select! {
            result = &mut end => {
                log.print_rest()?;
                return Ok(result);
            }
            changed = next_change(&changes) => changed.context("cannot watch the log")?,
        }
    }
}

fn watch(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let descriptor = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&descriptor, directory, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    async_fd::register(descriptor, Interest::READABLE)
}

/// What changed does not matter: the file is looked at anyway.
async fn next_change(changes: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut events = [0; EVENTS_BYTES];
    changes.async_io(Interest::READABLE, |descriptor| Ok(rustix::io::read(descriptor, &mut events)?)).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood_and_what_is_no_line_is_not() {
        let line = |stderr, whole, content: &'static str| Some(Line { stderr, whole, content: content.as_bytes() });
        let cases = [
            ("2026-01-01T00:00:00.1Z stdout F hello world", line(false, true, "hello world")),
            ("2026-01-01T00:00:00.1Z stderr P part", line(true, false, "part")),
            ("2026-01-01T00:00:00.1Z stdout F ", line(false, true, "")),
            ("2026-01-01T00:00:00.1Z stdout F", line(false, true, "")),
            ("2026-01-01T00:00:00.1Z stdout F:x a", line(false, true, "a")),
            ("2026-01-01T00:00:00.1Z stdin F a", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn the_tail_begins_at_a_line() {
        let path = std::env::temp_dir().join(format!("cricket-tail-{}.log", std::process::id()));
        let text: String = (0..10_000).map(|number| format!("t stdout F line {number}\n")).collect();
        std::fs::write(&path, &text).expect("written");
        for (count, first) in [(1, 9999), (3, 9997), (5000, 5000), (10_000, 0), (20_000, 0)] {
            let mut file = File::open(&path).expect("opened");
            seek_to_tail(&mut file, count).expect("moved");
            let mut rest = String::new();
            file.read_to_string(&mut rest).expect("read");
            assert!(rest.starts_with(&format!("t stdout F line {first}\n")), "{count}");
        }
        std::fs::remove_file(path).expect("removed");
    }

    #[test]
    fn a_rotated_log_is_read_on() {
        let path = std::env::temp_dir().join(format!("cricket-rotated-{}.log", std::process::id()));
        std::fs::write(&path, "t stdout F a\n").expect("written");
        let mut log = LogFile::open(&path, None, false).expect("opened");
        log.print_file().expect("printed");
        assert!(!log.reopen().expect("looked"));
        let old = path.with_extension("old");
        std::fs::rename(&path, &old).expect("rotated");
        assert!(!log.reopen().expect("looked"), "between rename and the new file");
        std::fs::write(&path, "t stdout F b\n").expect("written");
        assert!(log.reopen().expect("looked"));
        std::fs::remove_file(path).expect("removed");
        std::fs::remove_file(old).expect("removed");
    }
}
