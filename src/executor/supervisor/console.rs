//! The terminal of a container as it comes from the runtime: through a socket, once.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{Gid, Uid};

use super::fault::{Fault, Result};

/// Name of the socket in the bundle.
pub const CONSOLE_SOCKET: &str = "console.sock";

/// Bound by a short name from inside the bundle: an address holds 108 bytes.
pub fn listen(bundle: &Path) -> Result<UnixListener> {
    let failed = "cannot make the socket for the terminal";
    rustix::process::chdir(bundle).map_err(Fault::io(failed))?;
    let _ = fs::remove_file(CONSOLE_SOCKET);
    let listener = UnixListener::bind(CONSOLE_SOCKET).map_err(Fault::io(failed))?;
    rustix::process::chdir("/").map_err(Fault::io(failed))?;
    Ok(listener)
}

/// The terminal's master; the other side is given to the container's user.
pub fn receive(listener: &UnixListener, (uid, _): (Uid, Gid), bundle: &Path) -> Result<OwnedFd> {
    let failed = "the container's terminal did not arrive";
    let (peer, _) = listener.accept().map_err(Fault::io(failed))?;
    let _ = fs::remove_file(bundle.join(CONSOLE_SOCKET));
    let terminal = receive_descriptor(peer.as_fd()).map_err(Fault::io(failed))?;
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    rustix::pty::ioctl_tiocgptpeer(&terminal, flags)
        .and_then(|other| rustix::fs::fchown(&other, Some(uid), None))
        .map_err(Fault::io("cannot give the terminal to the container's user"))?;
    Ok(terminal)
}

/// One descriptor, beside whatever bytes.
fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut bytes = [0u8; 128];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [io::IoSliceMut::new(&mut bytes)];
    rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let found = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came"))
}
