//! Namespaces of this process.

use std::io;

use rustix::thread::UnshareFlags;

/// Moves this process, which has one thread, into new namespaces. Nothing that memory safety rests on is unshared:
/// neither the descriptor table (callers never ask for it) nor memory.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "descriptors are not unshared"));
    }
    // SAFETY: the table of descriptors stays shared among the threads of the process (checked above).
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    Ok(())
}

/// NS_GET_MNTNS_ID of linux/nsfs.h (kernel 6.10): the id of a mount namespace, which no other ever gets.
const NS_GET_MNTNS_ID: u64 = 0x8008_b705;

/// What names a mount namespace: its id; its inode, which a later namespace may get, where the kernel has no ids.
pub fn mount_namespace_id(namespace: &std::fs::File) -> std::io::Result<u64> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    let mut id = 0u64;
    // SAFETY: the request writes one u64 to the address given, which is that of `id`.
    match unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_MNTNS_ID as libc::Ioctl, &raw mut id) } {
        0 => Ok(id),
        _ => Ok(namespace.metadata()?.ino()),
    }
}
