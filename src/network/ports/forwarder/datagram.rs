//! UDP: a client, told by its address and by the address that it wrote to, has a socket of its own in the node for as
//! long as something goes to and fro.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use rustix::net::{RecvFlags, SendFlags, SocketType};

use super::super::wire::Forward;
use super::dial::{dial, plain};

/// The longest datagram there is.
pub const DATAGRAM_BYTES: usize = 64 << 10;
/// A flow that carries nothing for so long is forgotten (RFC 4787 asks for two minutes at least).
const IDLE: Duration = Duration::from_secs(180);
/// As long as nobody has answered; the kernel's own flows too end as early.
const IDLE_UNANSWERED: Duration = Duration::from_secs(30);

/// Who spoke, and to which of our addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// The client.
    pub client: SocketAddr,
    /// Ours.
    pub local: IpAddr,
}

/// What goes to and fro between a client and a pod.
#[derive(Debug)]
pub struct Flow {
    /// In the node, connected to the pod.
    pub pod: OwnedFd,
    ends: Ends,
    used: Instant,
    answered: bool,
}

/// Has the kernel tell to which address each datagram was sent.
pub fn tell_destinations(socket: &OwnedFd) -> io::Result<()> {
    let v4 = setsockopt(socket, sockopt::Ipv4PacketInfo, &true);
    let v6 = setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true);
    Ok(v4.or(v6)?)
}

/// The next datagram of a client; none when there is no more.
pub fn take(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Ends)>> {
    let mut slices = [IoSliceMut::new(buffer)];
    let mut space = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let flags = MsgFlags::MSG_DONTWAIT;
    let received = match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
        Err(nix::errno::Errno::EAGAIN) => return Ok(None),
        other => other?,
    };
    let client = received.address.as_ref().and_then(address_of).ok_or(io::ErrorKind::AddrNotAvailable)?;
    let local = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::V4(u32::from_be(info.ipi_addr.s_addr).into())),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::V6(info.ipi6_addr.s6_addr.into())),
        _ => None,
    });
    let local = local.ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(Some((received.bytes, Ends { client, local })))
}

fn address_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
}

impl Flow {
    /// Of a client that speaks for the first time.
    pub fn new(ends: Ends, forward: &Forward) -> io::Result<Self> {
        let client = plain(ends.client);
        Ok(Self::with(dial(SocketType::DGRAM, client, forward)?, ends, Instant::now()))
    }

    /// By a socket that is there.
    pub fn with(pod: OwnedFd, ends: Ends, used: Instant) -> Self {
        Self { pod, ends, used, answered: false }
    }

    /// Whose it is.
    pub fn ends(&self) -> Ends {
        self.ends
    }

    /// Passes a client's datagram on. What the pod does not take is lost, as datagrams are.
    pub fn inwards(&mut self, datagram: &[u8]) {
        self.used_at(Instant::now());
        let _ = rustix::net::send(&self.pod, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Passes all datagrams that wait at the pod's end on to the client, from the address that it wrote to.
    pub fn outwards(&mut self, socket: &OwnedFd, buffer: &mut [u8]) {
        /// Before others have their turn.
        const ROUNDS: usize = 64;
        for _ in 0..ROUNDS {
            // A refusal by the pod (ICMP) is an error here and tells nothing to the client, as anywhere.
            let Ok((length, _)) = rustix::net::recv(&self.pod, &mut *buffer, RecvFlags::DONTWAIT) else { return };
            self.answered_at(Instant::now());
            answer(socket, &buffer[..length], self.ends);
        }
    }

    /// Something went in.
    pub fn used_at(&mut self, now: Instant) {
        self.used = now;
    }

    /// Something came back.
    pub fn answered_at(&mut self, now: Instant) {
        (self.used, self.answered) = (now, true);
    }

    /// When it last carried anything.
    pub fn used(&self) -> Instant {
        self.used
    }

    /// Whether anything ever came back.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// Whether it has carried nothing for long.
    pub fn is_idle(&self, now: Instant) -> bool {
        let limit = if self.answered { IDLE } else { IDLE_UNANSWERED };
        now.saturating_duration_since(self.used) >= limit
    }
}

fn answer(socket: &OwnedFd, datagram: &[u8], ends: Ends) {
    let slices = [IoSlice::new(datagram)];
    let (raw, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    let to = SockaddrStorage::from(ends.client);
    let _ = match ends.local {
        IpAddr::V4(local) => {
            let s_addr = u32::from_ne_bytes(local.octets());
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            sendmsg(raw, &slices, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&to))
        }
        IpAddr::V6(local) => {
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: local.octets() }, ipi6_ifindex: 0 };
            sendmsg(raw, &slices, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&to))
        }
    };
}
