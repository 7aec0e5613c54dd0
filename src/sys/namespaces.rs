//! Namespaces of this process.

use std::io;

use rustix::thread::UnshareFlags;

/// Moves this process, which has one thread, into new namespaces. Nothing that memory safety rests on is unshared: neither
/// the descriptor table (callers never ask for it) nor memory.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "descriptors are not unshared"));
    }
    // SAFETY: the table of descriptors stays shared among the threads of the process (checked above).
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    Ok(())
}
