//! Descriptors that tokio watches.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Has the runtime, which must be there, watch a nonblocking descriptor.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` has the same open descriptor for as long as it lives, and `AsyncFd` gives out no `&mut` to
    // it here by which it could be replaced.
    let watched = unsafe { AsyncFd::register(descriptor) };
    Ok(watched?)
}
