//! The wire between daemon, template and supervisors: framing, versions and descriptor passing.
//!
//! One datagram of a `SOCK_SEQPACKET` unix socket is one protobuf message of proto/supervisor.proto, at most
//! [`MESSAGE_LIMIT`] bytes, with at most [`DESCRIPTOR_LIMIT`] descriptors beside it (`SCM_RIGHTS`). Which descriptors
//! belong to which message is written beside the message. Nothing here blocks longer than the socket's own mode says,
//! starts a thread or knows tokio: the single-threaded supervisor and the daemon's `AsyncFd` use the same functions.
//! Every descriptor that arrives is close-on-exec and owned; with an error, whatever came along is closed.

mod outbox;
mod socket;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

pub use outbox::{OUTBOX_LIMIT, Outbox};
pub use socket::{SUPERVISOR_SOCKET, accept, connect, listen, pair, set_nonblocking};

/// What this build speaks: major * 1000 + minor. Fields are only added within a major.
pub const PROTOCOL_VERSION: u32 = 1000;
/// Longest message on the wire, in bytes. Anything larger (an OCI spec) goes through a file that the message names.
pub const MESSAGE_LIMIT: usize = 128 * 1024;
/// Most descriptors beside one message.
pub const DESCRIPTOR_LIMIT: usize = 32;
/// Longest text in a `wire::Error`, in bytes.
pub const ERROR_TEXT_LIMIT: usize = 4096;

/// The number of the descriptor at which `cricket supervise` finds its socket.
pub const TEMPLATE_SOCKET: i32 = 3;

/// Whether a peer of that version can be spoken to.
pub fn is_compatible(version: u32) -> bool {
    version / 1000 == PROTOCOL_VERSION / 1000
}

/// What goes wrong with a message. Anything but `NotReady` means that this connection is not to be used further.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The other end has closed.
    #[error("the other end closed the connection")]
    Closed,
    /// A nonblocking socket has no message, or no room for one.
    #[error("the socket is not ready")]
    NotReady,
    /// The message does not fit into a datagram.
    #[error("a message of {0} bytes is longer than {MESSAGE_LIMIT}")]
    TooLong(usize),
    /// A datagram was cut by the kernel, or its descriptors were.
    #[error("a message longer than {MESSAGE_LIMIT} bytes, or with more than {DESCRIPTOR_LIMIT} descriptors, came in")]
    Cut,
    /// More or fewer descriptors than the message is to have.
    #[error("{got} descriptors came with a message that has {expected}")]
    Descriptors {
        /// How many belong to the message.
        expected: usize,
        /// How many there were.
        got: usize,
    },
    /// An empty message cannot be told from the end of the connection.
    #[error("a message without any field cannot be sent")]
    Empty,
    /// Not the protobuf message that was expected.
    #[error("a message that cannot be read: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A system call failed.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A message as it came in.
#[derive(Debug)]
pub struct Received<M> {
    /// The message.
    pub message: M,
    /// What came beside it, in the sender's order.
    pub descriptors: Vec<OwnedFd>,
}

impl<M> Received<M> {
    /// The message and exactly `N` descriptors; any other number is an error, and all of them are closed.
    pub fn expect<const N: usize>(self) -> Result<(M, [OwnedFd; N]), ProtocolError> {
        let descriptors = self
            .descriptors
            .try_into()
            .map_err(|surplus: Vec<OwnedFd>| ProtocolError::Descriptors { expected: N, got: surplus.len() })?;
        Ok((self.message, descriptors))
    }
}

/// Sends one message with its descriptors, which stay the caller's. A datagram goes out whole or not at all, so several
/// threads may send on one socket.
pub fn send<M: Message>(socket: impl AsFd, message: &M, descriptors: &[BorrowedFd<'_>]) -> Result<(), ProtocolError> {
    send_encoded(socket, &encode(message)?, descriptors)
}

/// The bytes of a message, checked against the limits of the wire.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, ProtocolError> {
    let bytes = message.encode_to_vec();
    match bytes.len() {
        0 => Err(ProtocolError::Empty),
        length if length > MESSAGE_LIMIT => Err(ProtocolError::TooLong(length)),
        _ => Ok(bytes),
    }
}

/// Sends what `encode` made.
pub fn send_encoded(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), ProtocolError> {
    if descriptors.len() > DESCRIPTOR_LIMIT {
        return Err(ProtocolError::Descriptors { expected: DESCRIPTOR_LIMIT, got: descriptors.len() });
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
        debug_assert!(fits, "the control buffer has room for DESCRIPTOR_LIMIT descriptors");
    }
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(classify("sending a message", errno)),
        }
    }
}

/// Receives one message into `buffer`, which is at least [`MESSAGE_LIMIT`] long and holds nothing of use afterwards.
/// On a blocking socket it waits; on a nonblocking one it answers `NotReady`.
pub fn receive<M: Message + Default>(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received<M>, ProtocolError> {
    debug_assert!(buffer.len() >= MESSAGE_LIMIT, "a shorter buffer would cut messages that are allowed");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut *buffer)];
        match rustix::net::recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(classify("receiving a message", errno)),
        }
    };
    // Owned before anything else is looked at: whatever way this function ends, they are closed.
    let descriptors = drain(&mut control);
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || descriptors.len() > DESCRIPTOR_LIMIT {
        return Err(ProtocolError::Cut);
    }
    if received.bytes == 0 {
        return Err(ProtocolError::Closed);
    }
    let message = M::decode(&buffer[..received.bytes])?;
    Ok(Received { message, descriptors })
}

fn drain(control: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(arrived) = message {
            descriptors.extend(arrived);
        }
    }
    descriptors
}

fn classify(action: &'static str, errno: rustix::io::Errno) -> ProtocolError {
    use rustix::io::Errno;
    match errno {
        Errno::AGAIN => ProtocolError::NotReady,
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED => ProtocolError::Closed,
        errno => ProtocolError::Io { action, source: errno.into() },
    }
}

#[cfg(test)]
mod tests;
