//! Descriptors that were inherited from whoever started us.

use std::io;

const FIRST_ABOVE_STDIO: libc::c_uint = 3;

/// Marks every descriptor above standard error to be closed by the next execve, so that no child inherits what it is
/// not given.
pub fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: only sets close-on-exec; nothing is closed that somebody here owns.
    let result = unsafe {
        libc::close_range(FIRST_ABOVE_STDIO, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int)
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
