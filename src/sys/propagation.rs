//! Mount propagation of a mount that is held by descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// How mounts below a mount point travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Both ways.
    Shared,
    /// From outside to inside.
    Slave,
    /// Not at all.
    Private,
}

/// Sets the propagation of the mount `mount` (an O_PATH descriptor of its root) and of all mounts below it.
pub fn set(mount: BorrowedFd<'_>, propagation: Propagation) -> io::Result<()> {
    let kind = match propagation {
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Private => libc::MS_PRIVATE,
    };
    let attributes = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: kind, userns_fd: 0 };
    // SAFETY: the path is an empty C string, the attributes outlive the call and their size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
