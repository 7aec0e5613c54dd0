//! The CRI log of one container, written by the pod's own process: it goes on whether or not there is a daemon.
//!
//! Format, a line each: `<RFC3339, nanoseconds, UTC> <stdout|stderr> <P|F> <content>`. Lines longer than
//! [`LINE_LIMIT`] are split into parts tagged `P`, the last of them `F`; what was not terminated when the stream ended
//! is a `P`. Only whole log lines are ever in the file, also when the disk is full: then the container is held back
//! (its pipe is not read) and the write tried again until there is room. Nothing is lost, memory is bounded.
//!
//! How an event loop drives it. After every call of a `&mut self` method it looks at:
//! * `wants_read(stream)`: true: have `source(stream)` in epoll (level-triggered `EPOLLIN`) and call `on_readable`;
//!   false: have it *removed* from epoll (an interest of zero still reports a hang-up, for ever);
//! * `wake_at()`: call `on_wake` at that time;
//! * `take_trouble()`: a `LogTrouble` event to send, if `Some`;
//! * [`Scratch::give_back_at`], once for all logs of the process.
//!
//! When the container has ended: remove both sources from epoll, call `finish`, and report the exit then; the log is
//! complete unless `is_finished` is false (disk full): keep calling `on_wake` until it is true, also if that is long.
//! SIGPIPE has to be ignored (an attached client may be gone), and SIGXFSZ.

mod copies;
mod file;
mod format;
mod scratch;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use format::LINE_LIMIT;
pub use scratch::Scratch;

/// Which output of a container. A terminal's is all `Stdout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Descriptor 1, or the terminal.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// Where a log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPath {
    directory: PathBuf,
    name: PathBuf,
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

impl LogPath {
    /// From `CreateContainer`. `None` when the container is to have no log. Below `directory` (empty: the directory
    /// of `path`), which is the caller's word, nothing is followed.
    pub fn new(path: &str, directory: &str) -> Result<Option<Self>, LogError> {
        todo!()
    }
}

/// See the module.
#[derive(Debug)]
pub struct ContainerLog {}

impl ContainerLog {
    /// Opens the log, making the file. With `None` output goes to attached clients only.
    pub fn open(path: Option<LogPath>) -> Result<Self, LogError> {
        todo!()
    }

    /// Hands over the read end of an output pipe, or a terminal's master (as `Stdout`). It is made nonblocking, which a
    /// duplicate of a terminal's master shares.
    pub fn add_source(&mut self, stream: Stream, source: OwnedFd) -> io::Result<()> {
        todo!()
    }

    /// What to have in epoll while `wants_read`. It stays open until `finish`.
    pub fn source(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        todo!()
    }

    /// Whether `on_readable` is to be called for this stream; see the module.
    pub fn wants_read(&self, stream: Stream) -> bool {
        todo!()
    }

    /// Reads what is there, a bounded amount, and writes it. Never blocks on the container or a client.
    pub fn on_readable(&mut self, stream: Stream, scratch: &mut Scratch) {
        todo!()
    }

    /// When `on_wake` is to be called.
    pub fn wake_at(&self) -> Option<Instant> {
        todo!()
    }

    /// Tries again what could not be written, or goes on reading after a rest. Harmless when called too early or late.
    pub fn on_wake(&mut self, scratch: &mut Scratch) {
        todo!()
    }

    /// Copies output to these from now on: nonblocking from here on, closed when the stream ends or when the client
    /// does not keep up or is gone. With a terminal, or for both in one, `stdout` alone.
    pub fn attach(&mut self, stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) -> Result<(), LogError> {
        todo!()
    }

    /// Opens the path anew, after it was renamed; output goes there at once. On error everything stays as it was and no
    /// new file is left.
    pub fn reopen(&mut self) -> Result<(), LogError> {
        todo!()
    }

    /// The container has ended, its sources are out of epoll: reads what is left, writes unterminated tails, closes the
    /// sources and the clients. See the module.
    pub fn finish(&mut self, scratch: &mut Scratch) {
        todo!()
    }

    /// Whether all output is in the file. Before `finish`: whether all sources have ended.
    pub fn is_finished(&self) -> bool {
        todo!()
    }

    /// A change to report since the last call: what is wrong, or an empty string when it is over.
    pub fn take_trouble(&mut self) -> Option<String> {
        todo!()
    }
}
