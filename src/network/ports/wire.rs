//! How the daemon speaks to the forwarder: one JSON document a datagram of a SOCK_SEQPACKET socket,
//! `STATE/forwarder.sock`, an answer to each. Listening sockets travel beside the message. Fields are only ever added.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Cidr, Protocol};
use crate::store::PodId;

/// Longest message; a list of the pods of a full node fits.
const MESSAGE_LIMIT_BYTES: usize = 128 << 10;
/// Most sockets beside one message: each family, on the host and in the node.
pub const SOCKETS_LIMIT: usize = 8;

/// What is asked of the forwarder.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Request {
    /// Which pods' ports it has.
    List,
    /// Serve the sockets beside the message.
    Add(Forward),
    /// Close all sockets and connections of a pod; that there are none is fine.
    Remove {
        /// The pod.
        pod: PodId,
    },
}

/// Sockets, and where what arrives at them goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Forward {
    /// Whose.
    pub pod: PodId,
    /// What the sockets are of.
    pub protocol: Protocol,
    /// At most one of each family.
    pub targets: Vec<SocketAddr>,
    /// See [`super::Destination`]. An earlier daemon does not say: then they do.
    #[serde(default = "yes")]
    pub answers_return: bool,
    /// See [`super::Destination`]. An earlier daemon does not say: then they are of the usual lengths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Cidr>,
}

fn yes() -> bool {
    true
}

/// What the forwarder answers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// To `List`.
    #[serde(default)]
    pub pods: Vec<PodId>,
    /// Why it was not done.
    #[serde(default)]
    pub error: Option<String>,
}

/// Sends one message.
pub fn send(socket: impl AsFd, message: &impl Serialize, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_LIMIT))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if bytes.len() > MESSAGE_LIMIT_BYTES
        || (!sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(sockets)))
    {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message for the forwarder is too long"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message; none at the end of the connection.
pub fn receive<M: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_LIMIT_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_LIMIT))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(socket, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut sockets = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            sockets.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of the forwarder was cut"));
    }
    match received.bytes {
        0 => Ok(None),
        length => Ok(Some((serde_json::from_slice(&bytes[..length]).map_err(io::Error::other)?, sockets))),
    }
}
