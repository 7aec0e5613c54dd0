//! Whose files are in a user namespace: one range of ids, and mounts that show files as if they belonged to it
//! (idmapped mounts, kernel 5.12). A file that is user 7's where it lies is user 7's inside the namespace too.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use serde::{Deserialize, Serialize};

/// The ids 0 to LENGTH - 1 of a user namespace, which are FIRST to FIRST + LENGTH - 1 around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// What 0 is outside.
    pub first: u32,
    /// How many there are.
    pub length: u32,
}

impl IdRange {
    /// Whether the id `outside` is one of the namespace's.
    pub fn holds(&self, outside: u32) -> bool {
        outside.checked_sub(self.first).is_some_and(|id| id < self.length)
    }

    /// What the namespace's `id` is outside; none: it has no such id.
    pub fn outside(&self, id: u32) -> Option<u32> {
        (id < self.length).then(|| self.first.checked_add(id)).flatten()
    }
}

/// Makes the detached mount `mount` (with `whole`, what is mounted below it too) show its files as the ids of
/// `user_namespace`. Needs to be privileged where the *file system* was mounted: the disk's owner is root, a tmpfs of
/// somebody's user namespace is his. `EPERM`, or `EINVAL` where the kind of file system cannot do it.
pub fn show_as(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, whole: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    let flags = if whole { libc::AT_EMPTY_PATH | libc::AT_RECURSIVE } else { libc::AT_EMPTY_PATH };
    // SAFETY: the path is an empty C string, the attributes outlive the call and their size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_outside_what_the_range_says_and_nothing_beyond_it() {
        let range = IdRange { first: 65536, length: 10 };
        assert_eq!((range.outside(0), range.outside(9), range.outside(10)), (Some(65536), Some(65545), None));
        assert!(range.holds(65536) && range.holds(65545) && !range.holds(65546) && !range.holds(0));
        assert_eq!(IdRange { first: u32::MAX, length: 2 }.outside(1), None);
    }
}
