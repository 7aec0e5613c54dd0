//! One output of a container: its descriptor, and how it is read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Stream;
use super::format::Formatter;
use super::scratch::READ_LENGTH;
use crate::executor::protocol::set_nonblocking;

/// How long a busy stream is left alone.
pub const REST: Duration = Duration::from_millis(1);
/// A stream is busy when something came this soon after what came before.
const BUSY: Duration = Duration::from_millis(4);
/// Reads that bring this much are worth their system calls: no rest.
const WORTH_READING: usize = READ_LENGTH / 4;
/// A read that brings this much found a pipe that was full, or soon would have been. (Short writes leave room in each
/// of its pages, so that it is never full to the byte.)
const NEARLY_FULL: usize = READ_LENGTH / 4 * 3;
/// What the pipe of a stream is enlarged to that fills it while it rests; within the rights of an unprivileged user,
/// who has 64 MiB for all pipes: so never before it is needed.
const BUSY_PIPE: usize = 256 * 1024;

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// So many bytes, and whether there is more.
    Bytes(usize, Left),
    /// Nothing now.
    Nothing,
    /// Nothing any more.
    End,
}

/// What a read left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The buffer was filled.
    More,
    /// It was not.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub struct Source {
    descriptor: OwnedFd,
    pub formatter: Formatter,
    ended: bool,
    last_read: Option<Instant>,
    rests_until: Option<Instant>,
    enlarged: bool,
}

impl Source {
    /// Makes it nonblocking.
    pub fn new(stream: Stream, descriptor: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&descriptor, true)?;
        let formatter = Formatter::new(stream);
        Ok(Self { descriptor, formatter, ended: false, last_read: None, rests_until: None, enlarged: false })
    }

    /// Whether something that arrives is to be read at once.
    pub fn wants_read(&self) -> bool {
        !self.ended && self.rests_until.is_none()
    }

    /// The end of the rest, while there is one.
    pub fn rests_until(&self) -> Option<Instant> {
        self.rests_until
    }

    /// Whether a rest was on and is over.
    pub fn end_rest(&mut self, now: Instant) -> bool {
        let over = self.rests_until.is_some_and(|until| until <= now);
        if over {
            self.rests_until = None;
        }
        over
    }

    /// Whether nothing will come any more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Nothing is to be read any more.
    pub fn end(&mut self) {
        self.ended = true;
        self.rests_until = None;
    }

    /// Reads once, and decides whether to rest afterwards.
    pub fn read(&mut self, buffer: &mut [u8], now: Instant) -> Input {
        loop {
            match rustix::io::read(&self.descriptor, &mut *buffer) {
                Ok(0) => return Input::End,
                Ok(count) => return self.judge(count, buffer.len(), now),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Input::Nothing,
                // EIO: a terminal that nobody has open any more.
                Err(_) => return Input::End,
            }
        }
    }

    fn judge(&mut self, count: usize, asked: usize, now: Instant) -> Input {
        let busy = self.last_read.replace(now).is_some_and(|last| now.duration_since(last) < BUSY);
        if count >= NEARLY_FULL {
            self.enlarge();
        }
        if count == asked {
            return Input::Bytes(count, Left::More);
        }
        self.rests_until = (busy && count < WORTH_READING).then(|| now + REST);
        Input::Bytes(count, Left::Nothing)
    }

    fn enlarge(&mut self) {
        if !self.enlarged {
            self.enlarged = true;
            // Not a pipe, or the user has too many: then it is as large as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(&self.descriptor, BUSY_PIPE);
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
