//! Where no overlay can be mounted: the layers laid over each other by copying, whiteouts obeyed.
//!
//! Both trees are ours (layers were written by `unpack`, the copy by this file), so paths are joined, but links are
//! never followed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, lgetxattr, llistxattr, lsetxattr,
    mkfifoat, utimensat,
};

use super::super::ImageError;
use super::super::layers::io_error;
use super::super::unpack::{OPAQUE_NAME, WHITEOUT_PREFIX};
use crate::sys::owners::IdRange;
use crate::sys::removal::remove_path;

/// Marks of overlayfs, which a copy must not have.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
/// Levels of directories; a layer's paths have no more.
const DEPTH_LIMIT: usize = 2048;
/// Names of attributes of one file, and one value: the kernel's own limits.
const ATTRIBUTE_LIMIT_BYTES: usize = 64 << 10;

/// Files with several names, not all of which were met, that are remembered; a name of one more becomes a file of its
/// own.
const LINKED_LIMIT: usize = 100_000;

/// Copies `trees`, lowest first, into the directory `to`; with `ids`, owners become that namespace's.
pub fn copy_layers(trees: Vec<PathBuf>, to: &Path, ids: Option<IdRange>) -> Result<(), ImageError> {
    for tree in trees {
        let mut copy = Copy { linked: HashMap::new(), ids };
        copy.directory(&tree, to, 0).map_err(io_error("copy a layer to", to))?;
    }
    Ok(())
}

struct Copy {
    /// First copy of each file that has several names, and how many of them are still to come.
    linked: HashMap<u64, (PathBuf, u64)>,
    ids: Option<IdRange>,
}

/// An owner outside the namespace `ids`; one that it has not got stays nobody's.
pub fn owner(uid: u32, gid: u32, ids: Option<IdRange>) -> (Uid, Gid) {
    let of = |id: u32| ids.and_then(|ids| ids.outside(id)).unwrap_or(id);
    (Uid::from_raw(of(uid)), Gid::from_raw(of(gid)))
}

impl Copy {
    fn directory(&mut self, from: &Path, to: &Path, depth: usize) -> io::Result<()> {
        if depth > DEPTH_LIMIT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let metadata = fs::symlink_metadata(&source)?;
            let kind = metadata.file_type();
            if kind.is_char_device() {
                // Devices in a layer are whiteouts.
                remove_path(&target)?;
                continue;
            }
            if let Some(hidden) = entry.file_name().as_bytes().strip_prefix(WHITEOUT_PREFIX) {
                // The mark of an opaque directory was obeyed before, and would hide a name that no layer can have.
                if !matches!(hidden, b"" | b"." | b"..") {
                    remove_path(&to.join(OsStr::from_bytes(hidden)))?;
                }
                continue;
            }
            if kind.is_dir() {
                self.make_directory(&source, &target)?;
                self.directory(&source, &target, depth + 1)?;
                copy_attributes(&source, &target, &metadata, self.ids)?;
                continue;
            }
            remove_path(&target)?;
            if self.link(entry.ino(), &target)? {
                continue;
            }
            copy_file(&source, &target, kind)?;
            copy_attributes(&source, &target, &metadata, self.ids)?;
            if metadata.nlink() > 1 && self.linked.len() < LINKED_LIMIT {
                self.linked.insert(entry.ino(), (target, metadata.nlink() - 1));
            }
        }
        Ok(())
    }

    /// Makes `target` a further name of a file that was copied before. False: there is none.
    fn link(&mut self, inode: u64, target: &Path) -> io::Result<bool> {
        let Some((first, left)) = self.linked.get_mut(&inode) else { return Ok(false) };
        fs::hard_link(first, target)?;
        *left -= 1;
        if *left == 0 {
            self.linked.remove(&inode);
        }
        Ok(true)
    }

    fn make_directory(&mut self, source: &Path, target: &Path) -> io::Result<()> {
        let mut value = [0; 1];
        let opaque = OPAQUE.iter().any(|name| lgetxattr(source, *name, &mut value[..]).is_ok_and(|n| n == 1))
            || fs::symlink_metadata(source.join(OsStr::from_bytes(OPAQUE_NAME))).is_ok();
        let is_directory = fs::symlink_metadata(target).is_ok_and(|metadata| metadata.is_dir());
        if opaque || !is_directory {
            remove_path(target)?;
            fs::create_dir(target)?;
        }
        Ok(())
    }
}

fn copy_file(source: &Path, target: &Path, kind: fs::FileType) -> io::Result<()> {
    if kind.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(source)?, target);
    }
    if kind.is_fifo() {
        return Ok(mkfifoat(CWD, target, Mode::RUSR)?);
    }
    let from = fs::File::open(source)?;
    let to = fs::File::create_new(target)?;
    // Shares the blocks where the file system can; otherwise the kernel copies.
    if rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()).is_ok() {
        return Ok(());
    }
    io::copy(&mut &from, &mut &to).map(drop)
}

fn copy_attributes(source: &Path, target: &Path, metadata: &fs::Metadata, ids: Option<IdRange>) -> io::Result<()> {
    let (uid, gid) = owner(metadata.uid(), metadata.gid(), ids);
    chownat(CWD, target, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !metadata.is_symlink() {
        chmodat(CWD, target, Mode::from_raw_mode(metadata.mode() & 0o7777), AtFlags::empty())?;
    }
    let mut names = vec![0; ATTRIBUTE_LIMIT_BYTES];
    let length = llistxattr(source, &mut names[..]).unwrap_or(0);
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        if OPAQUE.iter().any(|mark| mark.as_bytes() == name) {
            continue;
        }
        let mut value = vec![0; ATTRIBUTE_LIMIT_BYTES];
        let length = lgetxattr(source, name, &mut value[..])?;
        lsetxattr(target, name, &value[..length], XattrFlags::empty())?;
    }
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
