//! TCP connections into the pod, for port-forwarding: made here, because this process lives in the pod's network.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::connection::{Answer, Requester};
use super::fault::{Fault, Result};
use super::pod::Pod;
use super::reactor::Source;
use crate::proto::supervisor as wire;
use crate::proto::supervisor::{ErrorKind, reply};

/// For one address to answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Connections under way at a time.
const DIALS_LIMIT: usize = 64;

/// A connection under way.
pub struct Dial {
    asker: Requester,
    socket: OwnedFd,
    /// Tried when this address does not answer.
    next: Option<SocketAddr>,
    pub(super) deadline: Instant,
    port: u16,
}

impl Pod {
    /// Begins to connect to a port of the pod.
    pub(super) fn dial(&mut self, asker: Requester, port: u32) -> Result<()> {
        let port = u16::try_from(port).ok().filter(|&port| port != 0);
        let port = port.ok_or_else(|| Fault::invalid("a port is a number from 1 to 65535"))?;
        if self.dials.len() >= DIALS_LIMIT {
            return Err(Fault::new(ErrorKind::ResourceExhausted, "too many connections into the pod are being made"));
        }
        let addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
        self.dial_address(asker, port, addresses[0], Some(addresses[1]))
    }

    fn dial_address(&mut self, asker: Requester, port: u16, to: SocketAddr, next: Option<SocketAddr>) -> Result<()> {
        let refused = Fault::io(format!("cannot connect to port {port} of the pod"));
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::socket_with(family, SocketType::STREAM, flags, None) {
            Ok(socket) => socket,
            Err(errno) => return Err(refused(errno)),
        };
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(errno) => {
                return match next {
                    Some(next) => self.dial_address(asker, port, next, None),
                    None => Err(refused(errno)),
                };
            }
        }
        let id = self.next_dial;
        self.reactor.watch_writable(&socket, Source::Dial(id)).map_err(Fault::io("cannot watch a connection"))?;
        self.next_dial += 1;
        self.dials.insert(id, Dial { asker, socket, next, deadline: Instant::now() + DEADLINE, port });
        Ok(())
    }

    /// An address has answered, one way or the other.
    pub(super) fn on_dial(&mut self, id: u64) {
        let Some(dial) = self.dials.remove(&id) else { return };
        self.reactor.forget(dial.socket.as_fd(), &Source::Dial(id));
        let error = match rustix::net::sockopt::socket_error(&dial.socket) {
            Ok(Ok(())) => {
                let result = reply::Result::Done(wire::Done::default());
                return self.answer(dial.asker, Ok(Answer { result, descriptors: vec![dial.socket] }));
            }
            Ok(Err(errno)) | Err(errno) => errno,
        };
        let tried = match dial.next {
            Some(next) => self.dial_address(dial.asker, dial.port, next, None),
            None => Err(Fault::state(format!("nothing listens at port {} of the pod: {error}", dial.port))),
        };
        if let Err(fault) = tried {
            self.answer(dial.asker, Err(fault));
        }
    }

    /// Gives up on what has not answered.
    pub(super) fn expire_dials(&mut self, now: Instant) {
        let late: Vec<u64> = self.dials.iter().filter(|(_, dial)| dial.deadline <= now).map(|(&id, _)| id).collect();
        for id in late {
            let Some(dial) = self.dials.remove(&id) else { continue };
            self.reactor.forget(dial.socket.as_fd(), &Source::Dial(id));
            let message = format!("port {} of the pod did not answer within {DEADLINE:?}", dial.port);
            self.answer(dial.asker, Err(Fault::new(ErrorKind::DeadlineExceeded, message)));
        }
    }
}
