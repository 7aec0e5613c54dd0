//! Mount points: in a root file system that will be read-only, made while it can still be written; and in a directory
//! below every image.

use std::fs::Permissions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat, openat2};
use rustix::io::Errno;

use super::super::layers::{io_error, make_directory};
use super::super::{ImageError, ImageErrorKind};

/// Mode of directories that lead to a mount point, and of the mount point.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
/// Mode of a file that something is mounted over.
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// Where every container has a mount.
const EVERYWHERE: [(&str, bool); 6] = [
    ("/dev", true),
    ("/proc", true),
    ("/sys", true),
    ("/etc/hostname", false),
    ("/etc/hosts", false),
    ("/etc/resolv.conf", false),
];

/// Where something will be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Absolute; links are followed inside the root.
    pub path: String,
    /// A directory, or a file.
    pub is_directory: bool,
}

/// Makes what is missing of `points` in the mount `root`.
pub fn make(root: &OwnedFd, points: &[MountPoint]) -> Result<(), ImageError> {
    points.iter().try_for_each(|point| {
        make_one(root, point).map_err(|e| {
            let message = format!("cannot make the mount point {}: {}", point.path, std::io::Error::from(e));
            ImageError::new(ImageErrorKind::BadImage, message)
        })
    })
}

/// Makes the directory with the mount points of every container.
pub fn make_everywhere(directory: &Path) -> Result<(), ImageError> {
    make_directory(directory)?;
    let shown = std::fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE.as_raw_mode()));
    let root = shown.and_then(|()| Ok(open(directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?));
    let root = root.map_err(io_error("open", directory))?;
    make(&root, &EVERYWHERE.map(|(path, is_directory)| MountPoint { path: path.to_owned(), is_directory }))
}

fn make_one(root: &OwnedFd, point: &MountPoint) -> rustix::io::Result<()> {
    if resolve(root, &point.path).is_ok() {
        return Ok(());
    }
    let path = point.path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
    let mut at = resolve(root, "/")?;
    let mut done = String::new();
    for component in parent.split('/').filter(|component| !component.is_empty()) {
        done = format!("{done}/{component}");
        at = match resolve(root, &done) {
            Err(Errno::NOENT) => {
                mkdirat(&at, component, DIRECTORY_MODE)?;
                resolve(root, &done)?
            }
            result => result?,
        };
    }
    if point.is_directory {
        return mkdirat(&at, name, DIRECTORY_MODE);
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&at, name, flags, FILE_MODE).map(drop)
}

fn resolve(root: impl AsFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}
