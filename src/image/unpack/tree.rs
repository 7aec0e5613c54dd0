//! The directory a layer is unpacked into, reached only by its descriptor.
//!
//! A parent that is a symbolic link of the same layer is followed *inside* the layer, as if the layer were the root of
//! everything (usr-merged packages write `lib/x` where `lib` links to `usr/lib`); such links are resolved here, one
//! component at a time, and the kernel is only ever asked for paths without links, beneath the layer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, Dev, FileType, Mode, OFlags, RawMode, Stat, XattrFlags, fsetxattr, mkdirat, mknodat, openat, readlinkat,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::error::{UnpackError, quoted};
use super::limits::{LINK_LIMIT, PATH_LIMIT_BYTES, within};
use super::path::{LayerPath, components};
use crate::sys::beneath::{directory_beneath, open_beneath};
use crate::sys::removal::remove_tree;

/// Parent directories whose descriptors are kept: archives walk a tree, so the last few serve nearly every entry.
const PARENTS: usize = 8;
/// Directories that no entry describes.
const IMPLICIT_MODE: Mode = Mode::from_raw_mode(0o755);
/// What overlayfs takes for "nothing is here": a character device 0:0.
const WHITEOUT: Dev = 0;

/// How overlayfs is told that a directory hides the one below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpaqueMark {
    /// `trusted.overlay.opaque`, for mounts by real root.
    Trusted,
    /// `user.overlay.opaque`, for `userxattr` mounts in a user namespace.
    User,
}

impl OpaqueMark {
    /// The attribute's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// See the module.
pub struct LayerTree {
    root: OwnedFd,
    mark: OpaqueMark,
    parents: Vec<(Vec<u8>, Rc<OwnedFd>)>,
    /// Directories made without an entry of their own.
    pub implicit: u64,
}

impl LayerTree {
    /// In the empty directory `root`.
    pub fn new(root: OwnedFd, mark: OpaqueMark) -> Self {
        Self { root, mark, parents: Vec::new(), implicit: 0 }
    }

    /// The layer's root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory `parent` (of a [`LayerPath`]), made where it is missing.
    pub fn parent(&mut self, parent: &[u8]) -> Result<Rc<OwnedFd>, UnpackError> {
        if let Some(at) = self.parents.iter().position(|(path, _)| path == parent) {
            self.parents[..=at].rotate_right(1);
            return Ok(self.parents[0].1.clone());
        }
        let directory = match directory_beneath(&self.root, parent) {
            Ok(directory) => directory,
            // Missing, or a link, or a whiteout on the way: look closely.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => self.resolve(parent, true)?,
            Err(e) => return Err(UnpackError::write("open directory", parent)(e)),
        };
        let directory = Rc::new(directory);
        self.parents.truncate(PARENTS - 1);
        self.parents.insert(0, (parent.to_vec(), directory.clone()));
        Ok(directory)
    }

    /// The directory `parent`, which must be there.
    pub fn existing_parent(&mut self, parent: &[u8]) -> Result<OwnedFd, UnpackError> {
        match directory_beneath(&self.root, parent) {
            Err(Errno::LOOP | Errno::NOTDIR) => self.resolve(parent, false),
            result => result.map_err(UnpackError::write("open directory", parent)),
        }
    }

    fn resolve(&mut self, path: &[u8], create: bool) -> Result<OwnedFd, UnpackError> {
        let mut pending: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut at = self.open(&real, path)?;
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                real.pop();
                at = self.open(&real, path)?;
                continue;
            }
            match statat(&at, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if file_type(&stat) == FileType::Symlink => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(UnpackError::Malformed(format!("{} leads through too many links", quoted(path))));
                    }
                    let target = readlinkat(&at, name.as_slice(), Vec::new())
                        .map_err(UnpackError::write("read link", path))?
                        .into_bytes();
                    if target.starts_with(b"/") {
                        real.clear();
                        at = self.open(&real, path)?;
                    }
                    pending.extend(components(&target).rev().map(<[u8]>::to_vec));
                    continue;
                }
                Ok(stat) if file_type(&stat) == FileType::Directory => {}
                Ok(stat) if create && is_whiteout(&stat) => self.make_opaque_directory(at.as_fd(), &name)?,
                Ok(_) => {
                    let text = format!("{} passes through something that is no directory", quoted(path));
                    return Err(UnpackError::Malformed(text));
                }
                Err(Errno::NOENT) if create => {
                    mkdirat(&at, name.as_slice(), IMPLICIT_MODE).map_err(UnpackError::write("make directory", path))?;
                    self.implicit += 1;
                }
                Err(e) => return Err(UnpackError::write("look up", path)(e)),
            }
            at = open_directory(at.as_fd(), &name).map_err(UnpackError::write("open directory", path))?;
            real.push(name);
            within("bytes in one path", real.iter().map(|c| c.len() as u64 + 1).sum(), PATH_LIMIT_BYTES as u64)?;
        }
        Ok(at)
    }

    fn open(&self, real: &[Vec<u8>], path: &[u8]) -> Result<OwnedFd, UnpackError> {
        directory_beneath(&self.root, &real.join(&b'/')).map_err(UnpackError::write("open directory", path))
    }

    /// A directory in the place of a whiteout: what lies below stays hidden.
    pub fn make_opaque_directory(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        self.remove(parent, name)?;
        mkdirat(parent, name, IMPLICIT_MODE).map_err(UnpackError::write("make directory", name))?;
        self.implicit += 1;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory =
            openat(parent, name, flags, Mode::empty()).map_err(UnpackError::write("open directory", name))?;
        self.set_opaque(directory.as_fd(), name)
    }

    /// Hides what lies below the directory (opened for reading).
    pub fn set_opaque(&self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        fsetxattr(directory, self.mark.name(), b"y", XattrFlags::empty())
            .map_err(UnpackError::write("mark as opaque", name))
    }

    /// Makes a whiteout.
    pub fn make_whiteout(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), WHITEOUT)
            .map_err(UnpackError::write("make whiteout", name))
    }

    /// Removes an entry and everything below it.
    pub fn remove(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        // Descriptors kept of what goes would lead into nothing.
        self.parents.clear();
        remove_tree(parent, name).map_err(UnpackError::write("replace", name))
    }

    /// Opens an entry that is a directory, for reading; none where it is no more, or no directory.
    pub fn directory(&self, path: &LayerPath) -> Option<OwnedFd> {
        open_beneath(&self.root, path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW).ok()
    }

    /// Removes a file that stands where a directory is to be made.
    pub fn unlink(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        unlinkat(parent, name, AtFlags::empty()).map_err(UnpackError::write("replace", name))
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    openat(parent, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Of a stat.
pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode as RawMode)
}

/// Whether overlayfs would take it for a whiteout.
pub fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == WHITEOUT
}
