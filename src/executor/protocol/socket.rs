//! Sockets of the protocol: made, bound and connected by path, whatever the length of the path.
//!
//! A unix address holds 108 bytes, a state directory may be longer: addresses go through `/proc/self/fd/N` of the
//! opened directory. A listener is 0600 from its first moment; who connects is checked by uid.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Name of a supervisor's socket in the run-time directory of its pod.
pub const SUPERVISOR_SOCKET: &str = "supervisor.sock";

/// Connections that may wait to be accepted: one daemon, its predecessor, and a person looking.
const BACKLOG: i32 = 8;

/// A connected pair, both close-on-exec and blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let ends = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok(ends)
}

/// Binds and listens at `directory/name`, replacing a socket that nobody listens at any more. `AddrInUse` when
/// somebody does. Close-on-exec, blocking.
pub fn listen(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let directory = open_directory(directory)?;
    let address = address_in(&directory, name)?;
    let listener = socket(SocketFlags::empty())?;
    // Before bind: the file system object takes its mode from here, so it is never wider, and umask is not touched.
    rustix::fs::fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
    match rustix::net::bind(&listener, &address) {
        Err(rustix::io::Errno::ADDRINUSE) => {
            refuse_if_alive(&address)?;
            rustix::fs::unlinkat(&directory, name, AtFlags::empty())?;
            rustix::net::bind(&listener, &address)?;
        }
        other => other?,
    }
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Connects to `directory/name`. `ConnectionRefused` or `NotFound` when nobody listens; `WouldBlock` when the
/// listener's queue is full. Close-on-exec, nonblocking.
pub fn connect(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let directory = open_directory(directory)?;
    let socket = socket(SocketFlags::NONBLOCK)?;
    rustix::net::connect(&socket, &address_in(&directory, name)?)?;
    Ok(socket)
}

/// Accepts one connection of our own user, nonblocking and close-on-exec; somebody else's is closed and `None`.
/// `WouldBlock` from a nonblocking listener with nobody waiting.
pub fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let peer = rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let trusted = rustix::net::sockopt::socket_peercred(&peer)?.uid == rustix::process::geteuid();
    Ok(trusted.then_some(peer))
}

/// Whether calls on the descriptor wait. The mode belongs to the open file, which a duplicate shares.
pub fn set_nonblocking(descriptor: impl AsFd, nonblocking: bool) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&descriptor)?;
    let wanted = if nonblocking { flags | OFlags::NONBLOCK } else { flags - OFlags::NONBLOCK };
    if wanted != flags {
        rustix::fs::fcntl_setfl(&descriptor, wanted)?;
    }
    Ok(())
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Only good while `directory` is open.
fn address_in(directory: &OwnedFd, name: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?)
}

fn refuse_if_alive(address: &SocketAddrUnix) -> io::Result<()> {
    let probe = socket(SocketFlags::NONBLOCK)?;
    match rustix::net::connect(&probe, address) {
        Err(rustix::io::Errno::CONNREFUSED) => Ok(()),
        Err(rustix::io::Errno::AGAIN) | Ok(()) => Err(io::ErrorKind::AddrInUse.into()),
        Err(errno) => Err(errno.into()),
    }
}
