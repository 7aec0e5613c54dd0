//! The directory a layer is unpacked into, reached only by its descriptor.
//!
//! A parent that is a symbolic link of the same layer is followed *inside* the layer, as if the layer were the root of
//! everything (usr-merged packages write `lib/x` where `lib` links to `usr/lib`); such links are resolved here, one
//! component at a time, and the kernel is only ever asked for paths without links, beneath the layer.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
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
use crate::sys::usage::{STAT_BLOCK_BYTES, Usage, of_tree};

/// Parent directories whose descriptors are kept: archives walk a tree, so the last few serve nearly every entry.
const PARENTS: usize = 8;
/// Directories that no entry describes.
const IMPLICIT_MODE: Mode = Mode::from_raw_mode(0o755);
/// What overlayfs takes for "nothing is here": a character device 0:0.
const WHITEOUT: Dev = 0;

/// In front of a name that a layer hides, in archives and in trees of [`OpaqueMark::Names`].
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// In such a directory: it hides the one below.
pub const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// How a layer's tree says what it hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpaqueMark {
    /// Devices 0:0 and `trusted.overlay.opaque`, for overlay mounts by real root.
    Trusted,
    /// Devices 0:0 and `user.overlay.opaque`, for `userxattr` mounts in a user namespace.
    User,
    /// Empty files with an archive's own names, where the file system takes no such devices or attributes (an overlay,
    /// NFS): for copies only. No other file of a layer can have such a name.
    Names,
}

impl OpaqueMark {
    /// What the file system of `directory` takes, by trying. That it is full, say, is no refusal.
    pub fn of(directory: BorrowedFd<'_>, in_user_namespace: bool) -> Self {
        let mark = if in_user_namespace { Self::User } else { Self::Trusted };
        let refuses = |result: rustix::io::Result<()>| {
            matches!(result, Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS))
        };
        let device = mknodat(directory, WHITEOUT_PREFIX, FileType::CharacterDevice, Mode::empty(), WHITEOUT);
        let attribute = mark.attribute().map_or(Ok(()), |name| fsetxattr(directory, name, b"y", XattrFlags::empty()));
        if refuses(device) || refuses(attribute) { Self::Names } else { mark }
    }

    /// The attribute's name, if it is one.
    fn attribute(self) -> Option<&'static str> {
        match self {
            Self::Trusted => Some("trusted.overlay.opaque"),
            Self::User => Some("user.overlay.opaque"),
            Self::Names => None,
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
    /// Files made that stand for something hidden.
    pub names: u64,
    /// What later entries replaced.
    pub gone: Usage,
}

impl LayerTree {
    /// In the empty directory `root`.
    pub fn new(root: OwnedFd, mark: OpaqueMark) -> Self {
        Self { root, mark, parents: Vec::new(), implicit: 0, names: 0, gone: Usage::default() }
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
                    self.uncover_directory(at.as_fd(), &name)?;
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
        self.hide_below(parent, name)
    }

    fn hide_below(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory =
            openat(parent, name, flags, Mode::empty()).map_err(UnpackError::write("open directory", name))?;
        self.set_opaque(directory.as_fd(), name)
    }

    /// Hides what lies below the directory (opened for reading).
    pub fn set_opaque(&mut self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        let result = match self.mark.attribute() {
            Some(attribute) => fsetxattr(directory, attribute, b"y", XattrFlags::empty()),
            None => self.make_name(directory, OPAQUE_NAME),
        };
        result.map_err(UnpackError::write("mark as opaque", name))
    }

    /// Makes a whiteout.
    pub fn make_whiteout(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        let result = match self.mark {
            OpaqueMark::Names => self.make_name(parent, &[WHITEOUT_PREFIX, name].concat()),
            _ => mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), WHITEOUT),
        };
        result.map_err(UnpackError::write("make whiteout", name))
    }

    fn make_name(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.names += 1;
        openat(parent, name, flags, Mode::RUSR).map(drop)
    }

    /// Takes the whiteout of `name` away where one is a file beside it: something of that name is made. Whether there
    /// was one.
    pub fn uncover(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, UnpackError> {
        if self.mark != OpaqueMark::Names || self.names == 0 {
            return Ok(false);
        }
        match unlinkat(parent, [WHITEOUT_PREFIX, name].concat(), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
            Err(e) => Err(UnpackError::write("replace the whiteout of", name)(e)),
        }
    }

    /// The same for a directory that was just made: what its whiteout hid stays hidden.
    pub fn uncover_directory(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        if self.uncover(parent, name)? { self.hide_below(parent, name) } else { Ok(()) }
    }

    /// Removes an entry and everything below it.
    pub fn remove(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        // Descriptors kept of what goes would lead into nothing.
        self.parents.clear();
        self.count_gone(parent, name);
        remove_tree(parent, name).map_err(UnpackError::write("replace", name))
    }

    /// Opens an entry that is a directory, for reading; none where it is no more, or no directory.
    pub fn directory(&self, path: &LayerPath) -> Option<OwnedFd> {
        open_beneath(&self.root, path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW).ok()
    }

    /// What will go; of a file with other names nothing.
    fn count_gone(&mut self, parent: BorrowedFd<'_>, name: &[u8]) {
        let Ok(stat) = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
        let usage = match file_type(&stat) {
            FileType::Directory => open_directory(parent, name)
                .and_then(|directory| of_tree(Path::new(&format!("/proc/self/fd/{}/.", directory.as_raw_fd()))))
                .unwrap_or_default(),
            _ if stat.st_nlink > 1 => return,
            FileType::RegularFile => Usage { bytes: stat.st_blocks as u64 * STAT_BLOCK_BYTES, inodes: 1 },
            _ => Usage { bytes: 0, inodes: 1 },
        };
        self.gone.bytes += usage.bytes;
        self.gone.inodes += usage.inodes;
    }

    /// Removes a file that stands where a directory is to be made.
    pub fn unlink(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        self.count_gone(parent, name);
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
