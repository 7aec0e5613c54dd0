//! How much a tree takes on disk, by descriptor: links are not followed, other file systems not entered, and depth
//! costs no descriptors.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{Errno, Result};

/// Bytes of a block in `st_blocks`, whatever the file system's own are.
pub const STAT_BLOCK_BYTES: u64 = 512;

/// Bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// On disk.
    pub bytes: u64,
    /// A file with several names counts once for each; its bytes are divided among them.
    pub inodes: u64,
}

impl Usage {
    fn add(&mut self, stat: &Stat) {
        let links = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory { 1 } else { stat.st_nlink.max(1) };
        self.bytes += (stat.st_blocks as u64 * STAT_BLOCK_BYTES) / links;
        self.inodes += 1;
    }
}

/// A directory on the way down, and what of it is still to be entered.
struct Level {
    inode: (u64, u64),
    pending: Vec<CString>,
}

/// Of the directory and everything below. A tree that changes meanwhile gives a figure of before or after. Blocking.
pub fn of_tree(path: &Path) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut at = open(CWD, path)?;
    let mut levels = vec![scan(&at, &mut usage)?];
    usage.add(&fstat(&at)?);
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            // What is gone by now is not counted.
            if let Ok(child) = open(&at, name.as_c_str()) {
                levels.push(scan(&child, &mut usage)?);
                at = child;
            }
            continue;
        }
        levels.pop();
        if let Some(parent) = levels.last() {
            at = open(&at, c"..")?;
            let stat = fstat(&at)?;
            if (stat.st_dev, stat.st_ino) != parent.inode {
                // Somebody moved the directory we were in.
                return Err(Errno::AGAIN);
            }
        }
    }
    Ok(usage)
}

fn scan(directory: &OwnedFd, usage: &mut Usage) -> Result<Level> {
    let own = fstat(directory)?;
    let mut level = Level { inode: (own.st_dev, own.st_ino), pending: Vec::new() };
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        usage.add(&stat);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_dev == own.st_dev {
            level.pending.push(name.to_owned());
        }
    }
    Ok(level)
}

fn open(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_counted_and_its_blocks_once() {
        let dir = std::env::temp_dir().join(format!("cricket-usage-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("a/b")).expect("made");
        std::fs::write(dir.join("a/f"), vec![1; 8192]).expect("written");
        std::fs::hard_link(dir.join("a/f"), dir.join("a/b/g")).expect("linked");
        let usage = of_tree(&dir).expect("counted");
        crate::sys::removal::remove_path(&dir).expect("removed");
        assert_eq!(usage.inodes, 5);
        assert!((8192..8192 + 4 * 4096).contains(&usage.bytes), "{usage:?}");
    }
}
