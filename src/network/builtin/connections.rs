//! The kernel's table of connections, over nfnetlink (linux/netfilter/nfnetlink_conntrack.h): datagrams have no end, so
//! an entry that leads to a pod that is gone, or that was made before a pod had the port, would lead a client astray
//! for as long as it goes on sending.

use std::io;
use std::net::IpAddr;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Subsystem of the table within nfnetlink.
const SUBSYSTEM: u16 = 1;
const NEW: u16 = SUBSYSTEM << 8;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;

const HEADER_BYTES: usize = 16;
const FAMILY_HEADER_BYTES: usize = 4;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// The upper bits of an attribute's kind are flags.
const KIND: u16 = 0x3fff;

/// CTA_*
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;

const UDP: u8 = 17;

/// Bytes of one answer of the kernel.
const ANSWER_BYTES: usize = 32 << 10;
/// Pods could fill the table: more than these are left to their own end.
const STALE_LIMIT: usize = 16_384;

/// Who sends to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Direction {
    pub source: IpAddr,
    pub source_port: u16,
    pub destination: IpAddr,
    pub destination_port: u16,
}

/// A flow of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub original: Direction,
    pub reply: Direction,
}

impl Flow {
    /// It was sent on to another than it was for.
    pub fn is_led_elsewhere(&self) -> bool {
        (self.reply.source, self.reply.source_port) != (self.original.destination, self.original.destination_port)
    }

    /// It goes on in another's name.
    pub fn is_masqueraded(&self) -> bool {
        self.reply.destination != self.original.source
    }
}

/// Forgets the flows of datagrams for which `is_stale` holds, in the calling thread's network namespace; answers how
/// many.
pub fn forget(is_stale: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let stale = find(&socket, is_stale)?;
    for deletion in &stale {
        send(&socket, deletion)?;
        match answered(&receive(&socket)?) {
            // It has ended by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(stale.len())
}

fn send(socket: &Socket, message: &[u8]) -> io::Result<()> {
    socket.send_to(message, &SocketAddr::new(0, 0), 0).map(drop)
}

fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(ANSWER_BYTES);
    socket.recv(&mut bytes, 0)?;
    Ok(bytes)
}

/// The messages that delete what is stale.
fn find(socket: &Socket, is_stale: impl Fn(&Flow) -> bool) -> io::Result<Vec<Vec<u8>>> {
    const ANY_FAMILY: u8 = 0;
    send(socket, &message(GET, REQUEST | DUMP, ANY_FAMILY, &[]))?;
    let mut stale = Vec::new();
    loop {
        let answer = receive(socket)?;
        let mut rest = answer.as_slice();
        while let Some((kind, body)) = next_message(&mut rest) {
            match kind {
                NLMSG_DONE => return Ok(stale),
                NLMSG_ERROR => return answered(&answer).map(|()| stale),
                NEW if stale.len() < STALE_LIMIT => stale.extend(deletion(body, &is_stale)),
                _ => {}
            }
        }
    }
}

/// Kind and body of the first message; `bytes` then begins at the next.
fn next_message<'a>(bytes: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER_BYTES..length)?;
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body))
}

fn deletion(body: &[u8], is_stale: impl Fn(&Flow) -> bool) -> Option<Vec<u8>> {
    let (family, list) = (*body.first()?, body.get(FAMILY_HEADER_BYTES..)?);
    let flow = Flow { original: direction(value(list, ORIGINAL)?)?, reply: direction(value(list, REPLY)?)? };
    // The id, so that it is this entry and no later one of the same addresses.
    let named = attributes(list).filter(|(kind, _, _)| [ORIGINAL, ID, ZONE].contains(kind));
    let named: Vec<u8> = named.flat_map(|(_, _, whole)| whole.iter().copied()).collect();
    is_stale(&flow).then(|| message(DELETE, REQUEST | ACK, family, &named))
}

fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER_BYTES + FAMILY_HEADER_BYTES + attributes.len();
    let mut bytes = (length as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: one question at a time, to the kernel.
    bytes.extend([0; 8]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend_from_slice(attributes);
    bytes
}

/// Kind, value, and the whole with its header, up to the next one's beginning.
fn attributes(mut list: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*list.first_chunk()?));
        let kind = u16::from_ne_bytes(list.get(2..4)?.try_into().ok()?) & KIND;
        let value = list.get(ATTRIBUTE_HEADER_BYTES..length)?;
        let (whole, rest) = list.split_at(length.next_multiple_of(4).min(list.len()));
        list = rest;
        Some((kind, value, whole))
    })
}

fn value(list: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(list).find(|(kind, _, _)| *kind == wanted).map(|(_, value, _)| value)
}

/// None: no datagrams.
fn direction(tuple: &[u8]) -> Option<Direction> {
    let (addresses, protocol) = (value(tuple, 1)?, value(tuple, 2)?);
    if value(protocol, 1)? != [UDP] {
        return None;
    }
    let port = |kind| Some(u16::from_be_bytes(value(protocol, kind)?.try_into().ok()?));
    let address = |v4, v6| match value(addresses, v4) {
        Some(bytes) => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        None => Some(IpAddr::from(<[u8; 16]>::try_from(value(addresses, v6)?).ok()?)),
    };
    let (source, destination) = (address(1, 3)?, address(2, 4)?);
    Some(Direction { source, source_port: port(2)?, destination, destination_port: port(3)? })
}

/// One NLMSG_ERROR: a failed message's error, or zero.
fn answered(answer: &[u8]) -> io::Result<()> {
    let code = answer.get(HEADER_BYTES..).and_then(|body| body.first_chunk()).map(|bytes| i32::from_ne_bytes(*bytes));
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::other("the kernel's answer is not understood")),
    }
}
