//! Messages that wait for room in a nonblocking socket: what the single-threaded supervisor has for each daemon.
//!
//! Order is kept and nothing is dropped; who lets more than [`OUTBOX_LIMIT`] bytes pile up is to be disconnected: it
//! finds the state in the next `HelloReply`.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;

use super::{ProtocolError, encode, send_encoded};

/// Most bytes that wait for one peer.
pub const OUTBOX_LIMIT: usize = 1024 * 1024;

/// See the module. Holds no memory while nothing waits.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    bytes: usize,
}

impl Outbox {
    /// Sends at once, or keeps the message (and its descriptors) until [`Outbox::flush`]. `TooLong` beyond the limit.
    pub fn send<M: Message>(
        &mut self,
        socket: impl AsFd,
        message: &M,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), ProtocolError> {
        let bytes = encode(message)?;
        if self.waiting.is_empty() {
            match send_owned(&socket, &bytes, &descriptors) {
                Err(ProtocolError::NotReady) => {}
                other => return other,
            }
        }
        self.bytes += bytes.len();
        if self.bytes > OUTBOX_LIMIT {
            return Err(ProtocolError::TooLong(self.bytes));
        }
        self.waiting.push_back((bytes, descriptors));
        Ok(())
    }

    /// Sends what there is room for; call it when the socket becomes writable.
    pub fn flush(&mut self, socket: impl AsFd) -> Result<(), ProtocolError> {
        while let Some((bytes, descriptors)) = self.waiting.front() {
            match send_owned(&socket, bytes, descriptors) {
                Ok(()) => self.bytes -= bytes.len(),
                Err(ProtocolError::NotReady) => return Ok(()),
                Err(error) => return Err(error),
            }
            self.waiting.pop_front();
        }
        self.waiting = VecDeque::new();
        Ok(())
    }

    /// Whether to wait for the socket to become writable.
    pub fn wants_write(&self) -> bool {
        !self.waiting.is_empty()
    }
}

fn send_owned(socket: impl AsFd, bytes: &[u8], descriptors: &[OwnedFd]) -> Result<(), ProtocolError> {
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    send_encoded(socket, bytes, &borrowed)
}
