//! The CRI log of one container, written by the pod's own process: it goes on whether or not there is a daemon.
//!
//! Format, a line each: `<RFC3339, nanoseconds, UTC> <stdout|stderr> <P|F> <content>`. Lines longer than 16,384 bytes
//! (`format::LINE_LIMIT`) are split into parts tagged `P`, the last of them `F`; what was not terminated when the
//! stream ended is a `P`. Only whole log lines are ever in the file, also when the disk is full: then the container is
//! held back (its pipe is not read) and the write tried again until there is room. Nothing is lost, memory is bounded.
//! A disk that does not answer holds the container back too; see [`scribe`].
//!
//! How an event loop drives it. After every call of a `&mut self` method it looks at:
//! * `wants_read(stream)`: true: have `source(stream)` in epoll (level-triggered `EPOLLIN`) and call `on_readable`;
//!   false: have it *removed* from epoll (an interest of zero still reports a hang-up, for ever);
//! * `wake_at()`: call `on_wake` at that time;
//! * `take_trouble()`: a `LogTrouble` event to send, if `Some`;
//! * [`Scratch::give_back_at`] and [`Scribe::socket`], once for all logs of the process; when that is readable,
//!   [`Scribe::listen`], and `on_answer` of every log.
//!
//! When the container has ended: remove both sources from epoll, call `finish`, and report the exit then; the log is
//! complete unless `wake_at` still names a time (disk full, or silent): then go on calling `on_wake`, also if that
//! takes long. SIGPIPE has to be ignored (an attached client may be gone), and SIGXFSZ.
//!
//! A busy stream is not read at every write of the container: it is left to fill its pipe for a millisecond, so that a
//! program that writes line by line costs few system calls. The first line after a pause is always read at once.

mod copies;
mod file;
mod format;
mod scratch;
mod scribe;
mod source;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use copies::Copies;
use file::Unwritten;
use format::Lines;
use scribe::{LogHandle, Settled};
use source::{Input, Source};

pub use file::LogPath;
pub use scratch::Scratch;
pub use scribe::Scribe;

/// Reads of one call of `on_readable`: others get their turn after a megabyte.
const READS_A_TURN: usize = 16;
/// Reads of a stream whose container has ended: more than the largest pipe holds. A process that the container left
/// behind and that goes on writing is not waited for.
const READS_AT_THE_END: usize = 32;
/// How often a write that failed is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// How long a disk is silent before that is told.
const SILENCE: Duration = Duration::from_secs(1);
/// How long the end of a container waits for a disk: then it is reported, and the log is completed later.
const PATIENCE_AT_THE_END: Duration = Duration::from_secs(2);

/// Which output of a container. A terminal's is all `Stdout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Descriptor 1, or the terminal.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];
}

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not an absolute path to a file, or not below the log directory.
    #[error("the log path {0:?} is not a path to a file below the log directory {1:?}")]
    BadPath(String, String),
    /// The container has no log file.
    #[error("the container was created without a log path, there is no log to reopen")]
    NoLog,
    /// A FIFO, a device, a directory.
    #[error("the log path {0:?} is not a regular file; remove what is there")]
    NotAFile(PathBuf),
    /// A symbolic link on the way, below the log directory.
    #[error("the log path {0:?} goes through a symbolic link, which is not followed")]
    SymbolicLink(PathBuf),
    /// A system call failed.
    #[error("cannot open the log {path:?}: {source}")]
    Open {
        /// The log.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Too many are attached.
    #[error("{0} clients are attached to this container already; detach some")]
    TooManyClients(usize),
    /// An attached client's descriptor cannot be used.
    #[error("cannot copy output to an attached client: {0}")]
    Client(io::Error),
}

/// See the module.
#[derive(Debug)]
pub struct ContainerLog {
    file: Option<LogHandle>,
    /// By `Stream`.
    sources: [Option<Source>; 2],
    copies: Copies,
    held: Option<Held>,
    /// The container has ended; until then its end waits for the disk.
    finishing: Option<Instant>,
    /// Whether trouble was reported that is not over.
    troubled: bool,
    /// For `take_trouble`.
    trouble: Option<String>,
}

/// What could not be written yet. While it is there, nothing is read.
#[derive(Debug)]
struct Held {
    /// Whole lines.
    lines: Vec<u8>,
    /// Read, but not yet made into lines.
    input: Vec<u8>,
    stream: Stream,
    retry_at: Instant,
    /// The disk was given the lines, and has not answered.
    is_pending: bool,
    since: Instant,
}

impl ContainerLog {
    /// Opens the log, making the file. With `None` output goes to attached clients only.
    pub fn open(path: Option<LogPath>, scratch: &mut Scratch) -> Result<Self, LogError> {
        Ok(Self {
            file: path.map(|path| scratch.scribe().open(path)).transpose()?,
            sources: [None, None],
            copies: Copies::default(),
            held: None,
            finishing: None,
            troubled: false,
            trouble: None,
        })
    }

    /// Hands over the read end of an output pipe, or a terminal's master (as `Stdout`). It is made nonblocking, which a
    /// duplicate of a terminal's master shares.
    pub fn add_source(&mut self, stream: Stream, source: OwnedFd) -> io::Result<()> {
        self.sources[stream as usize] = Some(Source::new(stream, source)?);
        Ok(())
    }

    /// What to have in epoll while `wants_read`. It stays open until the log is finished.
    pub fn source(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        self.sources[stream as usize].as_ref().map(AsFd::as_fd)
    }

    /// Whether `on_readable` is to be called for this stream; see the module.
    pub fn wants_read(&self, stream: Stream) -> bool {
        let source = self.sources[stream as usize].as_ref();
        self.held.is_none() && self.finishing.is_none() && source.is_some_and(Source::wants_read)
    }

    /// Reads what is there, a bounded amount, and writes it. Never blocks on the container or a client.
    pub fn on_readable(&mut self, stream: Stream, scratch: &mut Scratch) {
        self.read(stream, READS_A_TURN, scratch);
    }

    /// When `on_wake` is to be called.
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.held {
            Some(held) => Some(held.retry_at),
            None => self.sources.iter().flatten().filter_map(Source::rests_until).min(),
        }
    }

    /// The disk has answered somebody: goes on with what waited for that.
    pub fn on_answer(&mut self, scratch: &mut Scratch) {
        if let Some(held) = &mut self.held {
            held.retry_at = Instant::now();
            self.retry(scratch);
        }
    }

    /// Tries again what could not be written, or goes on reading after a rest. Harmless when called too early or late.
    pub fn on_wake(&mut self, scratch: &mut Scratch) {
        let now = Instant::now();
        if self.held.as_ref().is_some_and(|held| held.retry_at <= now) {
            self.retry(scratch);
        }
        for stream in Stream::ALL {
            let source = self.sources[stream as usize].as_mut();
            if source.is_some_and(|source| source.end_rest(now)) {
                self.read(stream, READS_A_TURN, scratch);
            }
        }
    }

    /// Copies output to these from now on: nonblocking from here on, closed when the stream ends or when the client
    /// does not keep up or is gone. With a terminal, `stdout` alone.
    pub fn attach(&mut self, stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) -> Result<(), LogError> {
        for (stream, descriptor) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            let open = self.sources[stream as usize].as_ref().is_some_and(|source| !source.has_ended());
            if let Some(descriptor) = descriptor.filter(|_| open) {
                self.copies.attach(stream, descriptor)?;
            }
        }
        Ok(())
    }

    /// Opens the path anew, after it was renamed; output goes there at once, also what waits for room. On error
    /// everything stays as it was and no new file is left.
    pub fn reopen(&mut self, scratch: &mut Scratch) -> Result<(), LogError> {
        scratch.scribe().reopen(self.file.as_ref().ok_or(LogError::NoLog)?)?;
        if let Some(held) = &mut self.held {
            held.retry_at = Instant::now();
        }
        Ok(())
    }

    /// The container has ended, its sources are out of epoll: reads what is left, writes unterminated tails, closes the
    /// sources and the clients. See the module.
    pub fn finish(&mut self, scratch: &mut Scratch) {
        if self.finishing.is_none() {
            self.finishing = Some(Instant::now() + PATIENCE_AT_THE_END);
            self.retry(scratch);
        }
        for stream in Stream::ALL {
            if self.held.is_none() {
                self.read(stream, READS_AT_THE_END, scratch);
            }
            if self.held.is_none() {
                self.end(stream, scratch);
                self.sources[stream as usize] = None;
            }
        }
    }

    /// Whether all output is in the file. Before `finish`: whether all sources have ended.
    pub fn is_finished(&self) -> bool {
        self.held.is_none() && self.sources.iter().flatten().all(Source::has_ended)
    }

    /// It is not needed any more.
    pub fn close(self, scratch: &mut Scratch) {
        self.file.iter().for_each(|file| scratch.scribe().close(file));
    }

    /// A change to report since the last call: what is wrong, or an empty string when it is over.
    pub fn take_trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    /// Reads until nothing is there, and at most `times`.
    fn read(&mut self, stream: Stream, times: usize, scratch: &mut Scratch) {
        for _ in 0..times {
            let now = Instant::now();
            let (input, output, scribe) = scratch.parts(now);
            let source = self.sources[stream as usize].as_mut().filter(|source| !source.has_ended());
            let Some(source) = source else { return };
            let read = source.read(input, now);
            match read {
                Input::Bytes(count, _) => {
                    self.copies.send(stream, &input[..count]);
                    self.write(stream, &input[..count], output, scribe);
                }
                Input::Nothing => return,
                Input::End => return self.end(stream, scratch),
            }
            if self.held.is_some() || matches!(read, Input::Bytes(_, source::Left::Nothing)) {
                return;
            }
        }
    }

    /// Makes lines of what was read, and writes them.
    fn write(&mut self, stream: Stream, mut input: &[u8], output: &mut [u8], scribe: &mut Scribe) {
        let (Some(file), Some(source)) = (&self.file, &mut self.sources[stream as usize]) else { return };
        let mut lines = Lines::new(output);
        source.formatter.stamp(SystemTime::now());
        while !input.is_empty() {
            input = source.formatter.take(input, &mut lines);
            if let Err(unwritten) = scribe.append(file, lines.as_bytes(), self.finishing) {
                return self.hold(lines.as_bytes(), stream, input.to_vec(), &unwritten);
            }
            lines.clear();
        }
    }

    /// The stream has ended, or is not listened to any more.
    fn end(&mut self, stream: Stream, scratch: &mut Scratch) {
        self.copies.end(stream);
        let Some(source) = &mut self.sources[stream as usize] else { return };
        source.end();
        let Some(file) = &self.file else { return };
        let (_, output, scribe) = scratch.parts(Instant::now());
        let mut lines = Lines::new(output);
        source.formatter.stamp(SystemTime::now());
        let fits = source.formatter.finish(&mut lines);
        debug_assert!(fits, "an empty buffer holds the longest line");
        if let Err(unwritten) = scribe.append(file, lines.as_bytes(), self.finishing) {
            self.hold(lines.as_bytes(), stream, Vec::new(), &unwritten);
        }
    }

    fn hold(&mut self, lines: &[u8], stream: Stream, input: Vec<u8>, unwritten: &Unwritten) {
        let now = Instant::now();
        let (lines, is_pending) = (lines[unwritten.written..].to_vec(), unwritten.is_pending);
        self.held = Some(Held { lines, input, stream, retry_at: now + RETRY, is_pending, since: now });
        // A disk that is merely busy is no trouble.
        if unwritten.source.kind() != io::ErrorKind::TimedOut {
            self.tell_trouble(&unwritten.source.to_string(), "there is room");
        }
    }

    fn tell_trouble(&mut self, source: &str, until: &str) {
        if !std::mem::replace(&mut self.troubled, true) {
            let path = self.file.as_ref().map(LogHandle::path).unwrap_or_default();
            let path = path.display();
            self.trouble = Some(format!("cannot write the log {path}: {source}; the container waits until {until}"));
        }
    }

    /// Writes what is held, and all that follows from it.
    fn retry(&mut self, scratch: &mut Scratch) {
        let (Some(mut held), Some(file)) = (self.held.take(), self.file.as_ref()) else { return };
        let (_, output, scribe) = scratch.parts(Instant::now());
        let outcome = match held.is_pending {
            false => scribe.append(file, &held.lines, self.finishing),
            true => match scribe.settle(file, self.finishing) {
                Settled::Written => Ok(()),
                Settled::Failed(unwritten) => Err(unwritten),
                Settled::Pending => Err(Unwritten::pending()),
            },
        };
        if let Err(unwritten) = outcome {
            return self.hold_on(held, &unwritten);
        }
        held.lines.clear();
        self.write(held.stream, &held.input, output, scribe);
        if self.held.is_none() {
            if std::mem::take(&mut self.troubled) {
                self.trouble = Some(String::new());
            }
            if self.finishing.is_some() {
                self.finish(scratch);
            }
        }
    }

    /// They are not written yet.
    fn hold_on(&mut self, mut held: Held, unwritten: &Unwritten) {
        let now = Instant::now();
        held.lines.drain(..unwritten.written);
        held.retry_at = now + RETRY;
        held.is_pending = unwritten.is_pending;
        let silence = now.duration_since(held.since);
        self.held = Some(held);
        if unwritten.source.kind() != io::ErrorKind::TimedOut {
            self.tell_trouble(&unwritten.source.to_string(), "there is room");
        } else if silence >= SILENCE {
            self.tell_trouble("the disk does not answer", "it does");
        }
    }
}

#[cfg(test)]
mod tests;
