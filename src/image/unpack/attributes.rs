//! Owner, mode, extended attributes and times of what was unpacked, by descriptor.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown, fsetxattr, futimens, lsetxattr,
    utimensat,
};
use rustix::io::Errno;

use super::entries::Entry;
use super::error::{UnpackError, quoted};

/// Who owns an entry, checked.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    uid: Uid,
    gid: Gid,
}

impl Owner {
    /// Of an entry; 2^32-1 and above are no ids (the kernel reads 2^32-1 as "leave it").
    pub fn of(entry: &Entry) -> Result<Self, UnpackError> {
        let id = |value: u64| {
            u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or_else(|| {
                UnpackError::Malformed(format!("{} has the owner {value}, which is no id", quoted(&entry.path)))
            })
        };
        Ok(Self { uid: Uid::from_raw(id(entry.uid)?), gid: Gid::from_raw(id(entry.gid)?) })
    }

    fn refused(self, path: &[u8]) -> impl FnOnce(Errno) -> UnpackError {
        let path = path.to_vec();
        move |errno| match errno {
            Errno::INVAL => UnpackError::Malformed(format!(
                "{} belongs to {}:{}, which is not mapped in this user namespace; give the user more subordinate ids",
                quoted(&path),
                self.uid.as_raw(),
                self.gid.as_raw()
            )),
            errno => UnpackError::write("change owner of", &path)(errno),
        }
    }
}

/// Sets everything on an open file or directory. The owner comes first: changing it clears setuid bits and
/// capabilities.
pub fn apply(file: BorrowedFd<'_>, entry: &Entry) -> Result<(), UnpackError> {
    let owner = Owner::of(entry)?;
    fchown(file, Some(owner.uid), Some(owner.gid)).map_err(owner.refused(&entry.path))?;
    fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(UnpackError::write("change mode of", &entry.path))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_taken(name)) {
        let result = fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
        tolerate(name, result).map_err(not_set(name, entry))?;
    }
    futimens(file, &times(entry.mtime)).map_err(UnpackError::write("set time of", &entry.path))
}

/// Sets owner, attributes and time of a symbolic link or a pipe, by its directory and name.
pub fn apply_at(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry, mode: Option<Mode>) -> Result<(), UnpackError> {
    let owner = Owner::of(entry)?;
    chownat(parent, name, Some(owner.uid), Some(owner.gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(owner.refused(&entry.path))?;
    if let Some(mode) = mode {
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty())
            .map_err(UnpackError::write("change mode of", &entry.path))?;
    }
    for (attribute, value) in entry.xattrs.iter().filter(|(name, _)| is_taken(name)) {
        // There is no call for links by descriptor; the directory is ours and named by its descriptor.
        let mut path = format!("/proc/self/fd/{}/", std::os::fd::AsRawFd::as_raw_fd(&parent)).into_bytes();
        path.extend_from_slice(name);
        let result = lsetxattr(path, attribute.as_slice(), value, XattrFlags::empty());
        tolerate(attribute, result).map_err(not_set(attribute, entry))?;
    }
    utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(UnpackError::write("set time of", &entry.path))
}

/// Sets a directory's time, once nothing more is made in it.
pub fn set_time(directory: impl AsFd, mtime: (i64, u32)) {
    // A time that cannot be set is no reason to fail: everything else is in place.
    let _ = futimens(directory, &times(mtime));
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Attributes that an image may set. Those of overlayfs would redirect it; the rest of `security.` is the host's
/// policy.
fn is_taken(name: &[u8]) -> bool {
    let overlay = [&b"trusted.overlay."[..], b"user.overlay."].iter().any(|prefix| name.starts_with(prefix));
    let security = name.starts_with(b"security.") && name != b"security.capability";
    !overlay && !security
}

/// A file system without attributes, or a kind of attribute that our user namespace may not set, leaves them out;
/// a capability must not be lost silently.
fn tolerate(name: &[u8], result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::PERM | Errno::ACCESS) if name != b"security.capability" => Ok(()),
        result => result,
    }
}

/// Of a value that the kernel does not take for what its name says, the image is to blame. It is refused, as the other
/// runtimes do: a program that silently lost its capabilities would be looked for much longer.
fn not_set(name: &[u8], entry: &Entry) -> impl FnOnce(Errno) -> UnpackError {
    let (name, path) = (quoted(name), entry.path.clone());
    move |errno| match errno {
        Errno::INVAL => UnpackError::Malformed(format!("{} has an attribute {name} that is malformed", quoted(&path))),
        errno => UnpackError::write("set an attribute of", &path)(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_and_policy_attributes_are_dropped() {
        for (name, taken) in [
            ("user.overlay.redirect", false),
            ("trusted.overlay.metacopy", false),
            ("user.overlay.opaque", false),
            ("security.selinux", false),
            ("security.ima", false),
            ("security.capability", true),
            ("user.mime_type", true),
            ("user.overlayish", true),
        ] {
            assert_eq!(is_taken(name.as_bytes()), taken, "{name}");
        }
    }
}
