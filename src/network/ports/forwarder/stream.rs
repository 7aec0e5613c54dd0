//! TCP connections: accepted on the host, dialled in the node, carried by splice.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType};

use super::super::wire::Forward;
use super::dial::{dial, plain};
use super::pipe::{Direction, Progress};

/// A connection from a client to a pod.
#[derive(Debug)]
pub struct Connection {
    /// The client's end.
    pub client: OwnedFd,
    /// The pod's end.
    pub pod: OwnedFd,
    inwards: Direction,
    outwards: Direction,
}

/// What came of accepting.
pub enum Accepted {
    /// A connection.
    New(Box<Connection>),
    /// The client was turned away; there may be others.
    Refused(io::Error),
    /// Nobody waits.
    Nobody,
    /// Nobody can be taken in now: this process, or the machine, has too many descriptors.
    Full,
}

/// Takes in one client and dials its pod.
pub fn accept(listener: &OwnedFd, forward: &Forward) -> Accepted {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match rustix::net::acceptfrom_with(listener, flags) {
        Ok((client, address)) => {
            let address = address.and_then(|address| SocketAddr::try_from(address).ok());
            match connect(client, address, forward) {
                Ok(connection) => Accepted::New(Box::new(connection)),
                // This client is lost, but those who wait behind it are not.
                Err(error) if Errno::from_io_error(&error).is_some_and(is_lack) => Accepted::Full,
                Err(error) => Accepted::Refused(error),
            }
        }
        Err(Errno::AGAIN) => Accepted::Nobody,
        Err(errno) if is_lack(errno) => Accepted::Full,
        // The client is gone before it was taken in.
        Err(errno) => Accepted::Refused(errno.into()),
    }
}

/// Too many descriptors, or too little memory for one more.
fn is_lack(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
}

fn connect(client: OwnedFd, address: Option<SocketAddr>, forward: &Forward) -> io::Result<Connection> {
    let address = plain(address.ok_or(io::ErrorKind::AddrNotAvailable)?);
    let pod = dial(SocketType::STREAM, address, forward)?;
    for socket in [&client, &pod] {
        rustix::net::sockopt::set_socket_keepalive(socket, true)?;
        rustix::net::sockopt::set_tcp_nodelay(socket, true)?;
    }
    Ok(Connection { client, pod, inwards: Direction::new()?, outwards: Direction::new()? })
}

impl Connection {
    /// Carries what there is; an error is the end of both ends.
    pub fn pump(&mut self) -> Result<Progress, Errno> {
        let inwards = not_yet(self.inwards.pump(self.client.as_fd(), self.pod.as_fd()))?;
        let outwards = not_yet(self.outwards.pump(self.pod.as_fd(), self.client.as_fd()))?;
        Ok(match (inwards, outwards) {
            (Progress::Ended, Progress::Ended) => Progress::Ended,
            (Progress::Yields, _) | (_, Progress::Yields) => Progress::Yields,
            _ => Progress::Waits,
        })
    }

    /// Ends both ends as the broken one was ended: by a reset.
    pub fn reset(self) {
        for socket in [&self.client, &self.pod] {
            let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
        }
    }
}

/// A socket whose connection is on its way still has nothing to read and no room to write.
fn not_yet(progress: Result<Progress, Errno>) -> Result<Progress, Errno> {
    match progress {
        Err(Errno::NOTCONN) => Ok(Progress::Waits),
        other => other,
    }
}
