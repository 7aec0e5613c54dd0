//! What all logs of a pod share: its process's one large buffer, in which messages are received too, and the scribe.

use std::io;
use std::time::{Duration, Instant};

use super::scribe::Scribe;
use crate::executor::protocol::MESSAGE_LIMIT;
use crate::sys::pages::Pages;

/// Bytes read from a container at once: what a pipe holds.
pub const READ_LENGTH: usize = 64 * 1024;
/// Bytes of log lines written at once, at most.
pub const WRITE_LENGTH: usize = 128 * 1024;

/// How long the buffer is kept after it was last used.
const KEEP: Duration = Duration::from_secs(1);

const _: () = assert!(READ_LENGTH + WRITE_LENGTH >= MESSAGE_LIMIT);

/// See the module. Make one in each supervisor, after the fork.
#[derive(Debug)]
pub struct Scratch {
    pages: Pages,
    scribe: Scribe,
    last_use: Option<Instant>,
}

impl Scratch {
    /// Reserves the addresses; memory follows with use.
    pub fn new() -> io::Result<Self> {
        Ok(Self { pages: Pages::new(READ_LENGTH + WRITE_LENGTH)?, scribe: Scribe::here(), last_use: None })
    }

    /// As [`Scratch::new`], with a scribe that is a process of its own. The caller has one thread.
    pub fn with_scribe() -> io::Result<Self> {
        Ok(Self { scribe: Scribe::apart(), ..Self::new()? })
    }

    /// Who writes.
    pub fn scribe(&mut self) -> &mut Scribe {
        &mut self.scribe
    }

    /// For `protocol::receive`: at least `MESSAGE_LIMIT` bytes.
    pub fn message(&mut self) -> &mut [u8] {
        self.last_use = Some(Instant::now());
        &mut self.pages
    }

    /// Input of `READ_LENGTH` and output of `WRITE_LENGTH` bytes, and who writes.
    pub(super) fn parts(&mut self, now: Instant) -> (&mut [u8], &mut [u8], &mut Scribe) {
        self.last_use = Some(now);
        let (input, output) = self.pages.split_at_mut(READ_LENGTH);
        (input, output, &mut self.scribe)
    }

    /// When to call `give_back`; `None` when there is nothing to give.
    pub fn give_back_at(&self) -> Option<Instant> {
        self.last_use.map(|used| used + KEEP)
    }

    /// Gives the memory back if it was not used for a while. Harmless when called too early.
    pub fn give_back(&mut self) {
        if self.last_use.is_some_and(|used| used.elapsed() >= KEEP) {
            self.pages.give_back();
            self.scribe.give_back();
            self.last_use = None;
        }
    }
}
