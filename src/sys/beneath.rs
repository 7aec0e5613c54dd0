//! Opening paths that strangers wrote, beneath a directory descriptor: openat2 without links, magic or otherwise,
//! and without leaving the directory or its file system.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Result;

/// Nothing outside the directory can be reached, and no link is followed on the way or at the end.
const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Times an openat2 that lost a race with a rename somewhere on the machine is tried again.
const RACE_ATTEMPTS: usize = 64;

/// Opens `path` beneath `root`. `ELOOP`: a component is a symbolic link; `EXDEV`: it would leave `root`.
pub fn open_beneath(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let mut result = Err(rustix::io::Errno::AGAIN);
    for _ in 0..RACE_ATTEMPTS {
        result = openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), STRICT);
        if result.as_ref().err() != Some(&rustix::io::Errno::AGAIN) {
            break;
        }
    }
    result
}

/// As [`open_beneath`], a directory, as a place to work from (`O_PATH`).
pub fn directory_beneath(root: impl AsFd, path: &[u8]) -> Result<OwnedFd> {
    open_beneath(root, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)
}
