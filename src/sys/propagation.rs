//! Mount propagation: of a mount that is held by descriptor it is set, of a path it is looked up.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// Fields of a line of mountinfo: the mount's id, its mount point, the first of the optional ones.
const ID: usize = 0;
const MOUNT_POINT: usize = 4;
const OPTIONAL: usize = 6;

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

/// Whether a mount can be made read-only with all that is mounted below it: done with a detached copy of /proc.
pub fn try_read_only_below() -> io::Result<()> {
    let copy = super::overlay::clone_whole_tree(Path::new("/proc"))?;
    let read_only = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is an empty C string, the attributes outlive the call and their size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            copy.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const read_only,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The mount that `path` is on: its mount point, and how mounts below it travel. Shared wins where it is a slave too.
pub fn of(path: &Path) -> io::Result<(PathBuf, Propagation)> {
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    in_table(&table, id).ok_or_else(|| io::Error::other("the mount is not in /proc/thread-self/mountinfo"))
}

fn in_table(table: &str, id: u64) -> Option<(PathBuf, Propagation)> {
    let line = table.lines().find(|line| line.split(' ').nth(ID).and_then(|t| t.parse().ok()) == Some(id))?;
    let options: Vec<_> = line.split(' ').skip(OPTIONAL).take_while(|option| *option != "-").collect();
    let has = |name: &str| options.iter().any(|option| option.starts_with(name));
    let propagation = match (has("shared:"), has("master:")) {
        (true, _) => Propagation::Shared,
        (false, true) => Propagation::Slave,
        (false, false) => Propagation::Private,
    };
    Some((line.split(' ').nth(MOUNT_POINT)?.into(), propagation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn propagation_is_read_from_the_optional_fields() {
        let table = "20 1 0:5 / / rw - ext4 /dev/vda rw\n\
                     21 20 0:6 / /a rw,relatime shared:7 - tmpfs shared:9 rw\n\
                     22 20 0:7 / /b rw master:7 - tmpfs none rw\n23 20 0:8 / /c rw shared:2 master:7 - tmpfs none rw\n";
        for (id, point, expected) in [
            (20, "/", Propagation::Private),
            (21, "/a", Propagation::Shared),
            (22, "/b", Propagation::Slave),
            (23, "/c", Propagation::Shared),
        ] {
            assert_eq!(in_table(table, id), Some((point.into(), expected)));
        }
        assert_eq!(in_table(table, 2), None);
        assert!(of(Path::new("/")).is_ok());
    }
}
