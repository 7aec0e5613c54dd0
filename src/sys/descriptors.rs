//! The table of open descriptors as a whole: closing what is not wanted, before a process goes on as something else.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// First descriptor that is not a standard stream.
const FIRST: u32 = 3;

/// Closes every descriptor above 2 except those of `keep`.
pub fn close_all_except(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).filter(|&fd| fd >= FIRST).collect();
    keep.sort_unstable();
    let mut from = FIRST;
    for fd in keep {
        if fd > from {
            close_range(from, fd - 1, 0)?;
        }
        from = from.max(fd + 1);
    }
    close_range(from, u32::MAX, 0)
}

/// Marks every descriptor above 2 close-on-exec.
pub fn close_all_on_exec() -> io::Result<()> {
    close_range(FIRST, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: takes numbers only. Owned descriptors that it closes belong to the copy of a parent's state that a
    // forked child never goes back to, or are only marked.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The name by which this process, or a fork of it, opens anew what `fd` is.
pub fn path(fd: &OwnedFd) -> std::path::PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// Takes over a descriptor that this process was started with. Its number must be used for nothing else.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes a number and tells whether it is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the caller says that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Looks at a descriptor whose number came through somebody else's hands (a forked copy of this process's memory). It
/// stays open as long as this process runs this program.
pub fn borrowed(fd: RawFd) -> io::Result<BorrowedFd<'static>> {
    // SAFETY: F_GETFD takes a number and tells whether it is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the caller says that nobody closes it.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
