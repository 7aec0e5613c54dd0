//! Listening sockets of host ports, made in the calling thread's network namespace.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::holder::holder_of;
use super::{PortMapping, PortsError, Protocol};
use crate::sys::lookout::Lookout;

/// Clients that wait to be taken in.
const BACKLOG: i32 = 1024;

/// Sockets for every address of the mapping that this network namespace has; none where it has none of them.
pub fn listen(
    mapping: &PortMapping,
    place: &'static str,
    lookout: Option<&Lookout>,
) -> Result<Vec<OwnedFd>, PortsError> {
    let mut sockets = Vec::new();
    for ip in mapping.hosts() {
        let address = SocketAddr::new(ip, mapping.host_port);
        match open(mapping.protocol, address) {
            Ok(socket) => sockets.push(socket),
            Err(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) => {}
            Err(Errno::ADDRINUSE) => {
                let holder = holder_of(mapping.protocol, address, lookout)
                    .unwrap_or_else(|| "a process that is not seen".into());
                return Err(PortsError::Taken { port: *mapping, holder: format!("{holder} on {place}") });
            }
            Err(Errno::ACCESS | Errno::PERM) => {
                return Err(PortsError::Low { port: *mapping, number: mapping.host_port });
            }
            Err(errno) => return Err(PortsError::Socket { port: *mapping, place, source: errno.into() }),
        }
    }
    Ok(sockets)
}

fn open(protocol: Protocol, address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = if protocol == Protocol::Udp { SocketType::DGRAM } else { SocketType::STREAM };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections that ended a moment ago keep nobody from the port.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// As [`listen`], in another network namespace: by a thread that ends with it.
pub fn listen_in(
    namespace: &OwnedFd,
    mapping: &PortMapping,
    place: &'static str,
    lookout: Option<&Lookout>,
) -> Result<Vec<OwnedFd>, PortsError> {
    let failed = |source: io::Error| PortsError::Socket { port: *mapping, place, source };
    std::thread::scope(|scope| {
        let work = || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
            listen(mapping, place, lookout)
        };
        let thread =
            std::thread::Builder::new().name("node-sockets".into()).spawn_scoped(scope, work).map_err(failed)?;
        thread.join().unwrap_or_else(|_| Err(failed(io::Error::other("the thread in the node ended early"))))
    })
}
