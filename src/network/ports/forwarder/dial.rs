//! Sockets from the node to a pod, in the client's name where that can be done.
//!
//! The kernel lets us bind an address that is not ours (IP_TRANSPARENT); marks bring the pod's answers back
//! (`network::builtin`). It cannot be done for a client at a loopback address, nor for one that the pod believes to be
//! its neighbour, nor where plugins made the pod's network: these bear the node's address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::super::wire::Forward;
use super::super::{Cidr, FORWARDED_MARK};

/// An address inside an IPv4-mapped one is what it is.
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The target of the client's family, or else the first.
fn choose(targets: &[SocketAddr], client: IpAddr) -> Option<SocketAddr> {
    targets.iter().find(|target| target.is_ipv4() == client.is_ipv4()).or(targets.first()).copied()
}

/// A connected socket (a stream may be on its way still). Nonblocking.
pub fn dial(kind: SocketType, client: SocketAddr, forward: &Forward) -> io::Result<OwnedFd> {
    let target = choose(&forward.targets, client.ip()).ok_or(io::ErrorKind::AddrNotAvailable)?;
    if forward.answers_return
        && in_the_name_of(client, target, &forward.ranges)
        && let Ok(socket) = dial_as(kind, Some(client), target)
    {
        return Ok(socket);
    }
    dial_as(kind, None, target)
}

fn in_the_name_of(client: SocketAddr, target: SocketAddr, ranges: &[Cidr]) -> bool {
    let ip = client.ip();
    let link_local = matches!(ip, IpAddr::V6(address) if address.is_unicast_link_local());
    client.is_ipv4() == target.is_ipv4()
        && !ip.is_loopback()
        && !ip.is_unspecified()
        && !link_local
        && !neighbours(ip, target.ip(), ranges)
}

/// Whether the pod takes the client for somebody at its own bridge: by its range, or where that is not known by the
/// default length.
fn neighbours(client: IpAddr, pod: IpAddr, ranges: &[Cidr]) -> bool {
    const V4_BITS: u8 = 16;
    const V6_BITS: u8 = 64;
    let known = ranges.iter().find(|range| range.contains(pod)).copied();
    let usual = || Cidr::around(pod, if pod.is_ipv4() { V4_BITS } else { V6_BITS });
    known.or_else(usual).is_some_and(|range| range.contains(client))
}

fn dial_as(kind: SocketType, client: Option<SocketAddr>, target: SocketAddr) -> io::Result<OwnedFd> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if let Some(client) = client {
        // For both families: the flag is the socket's.
        setsockopt(&socket, sockopt::IpTransparent, &true)?;
        setsockopt(&socket, sockopt::Mark, &FORWARDED_MARK)?;
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &client)?;
    }
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_its_address_unless_it_could_not_be_answered() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for (client, target, kept) in [
            ("192.0.2.7:5000", "10.85.0.2:80", true),
            ("127.0.0.1:5000", "10.85.0.2:80", false),
            ("10.85.3.4:5000", "10.85.0.2:80", false),
            ("[2001:db8::7]:5000", "[fd85::2]:80", true),
            ("[::1]:5000", "[fd85::2]:80", false),
            ("[fe80::1]:5000", "[fd85::2]:80", false),
            ("[2001:db8::7]:5000", "10.85.0.2:80", false),
        ] {
            assert_eq!(in_the_name_of(address(client), address(target), &[]), kept, "{client} to {target}");
        }
        let ranges = ["10.85.0.0/20", "fd85::/48"].map(|range| range.parse().expect("a range"));
        for (client, target, kept) in [
            ("10.85.15.4:5000", "10.85.0.2:80", false),
            ("10.85.16.4:5000", "10.85.0.2:80", true),
            ("[fd85:0:0:7::1]:5000", "[fd85::2]:80", false),
            ("[fd85:1::1]:5000", "[fd85::2]:80", true),
        ] {
            assert_eq!(in_the_name_of(address(client), address(target), &ranges), kept, "{client} to {target}");
        }
        assert_eq!(plain(address("[::ffff:192.0.2.7]:5000")), address("192.0.2.7:5000"));
    }
}
