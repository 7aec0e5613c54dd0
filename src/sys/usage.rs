//! How much a tree takes on disk, by descriptor: links are not followed, other file systems not entered, depth costs no
//! descriptors, and neither number nor length of names costs memory.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{Errno, Result};

/// Bytes of a block in `st_blocks`, whatever the file system's own are.
pub const STAT_BLOCK_BYTES: u64 = 512;

/// Names of directories that are remembered at once, of all levels together. What is beyond is looked up again from
/// where the reading stopped.
const NAMES_LIMIT: usize = 4096;

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
    /// Where the reading goes on when those were entered; none: everything was read.
    next: Option<i64>,
}

/// Of the directory and everything below. A tree that changes meanwhile gives a figure of before or after. Blocking.
pub fn of_tree(path: &Path) -> Result<Usage> {
    of_tree_within(path, NAMES_LIMIT)
}

fn of_tree_within(path: &Path, names_limit: usize) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut at = open(CWD, path)?;
    let mut levels = Vec::new();
    let mut names = 0;
    enter(&mut levels, &at, &mut usage, names_limit, &mut names)?;
    usage.add(&fstat(&at)?);
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            names -= 1;
            // What is gone by now is not counted.
            if let Ok(child) = open(&at, name.as_c_str()) {
                enter(&mut levels, &child, &mut usage, names_limit, &mut names)?;
                at = child;
            }
            continue;
        }
        if level.next.is_some() {
            level.scan(&at, &mut usage, names_limit.saturating_sub(names))?;
            names += level.pending.len();
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

fn enter(
    levels: &mut Vec<Level>,
    directory: &OwnedFd,
    usage: &mut Usage,
    names_limit: usize,
    names: &mut usize,
) -> Result<()> {
    let own = fstat(directory)?;
    let mut level = Level { inode: (own.st_dev, own.st_ino), pending: Vec::new(), next: Some(0) };
    level.scan(directory, usage, names_limit.saturating_sub(*names))?;
    *names += level.pending.len();
    levels.push(level);
    Ok(())
}

impl Level {
    /// Counts entries from where the last scan stopped, until `room` directories were met (one at least) or all was
    /// read.
    fn scan(&mut self, directory: &OwnedFd, usage: &mut Usage, room: usize) -> Result<()> {
        let mut entries = Dir::read_from(directory)?;
        if let Some(next) = self.next.filter(|next| *next != 0) {
            entries.seek(next)?;
        }
        self.next = None;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            usage.add(&stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_dev == self.inode.0 {
                self.pending.push(name.to_owned());
                if self.pending.len() >= room.max(1) {
                    self.next = Some(entry.offset());
                    break;
                }
            }
        }
        Ok(())
    }
}

fn open(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_the_same_however_few_names_are_remembered() {
        let dir = std::env::temp_dir().join(format!("cricket-usage-names-{}", std::process::id()));
        for (wide, deep) in [(40, 1), (3, 30)] {
            for number in 0..wide {
                let path = dir.join(format!("{wide}-{number}")).join("d/".repeat(deep));
                std::fs::create_dir_all(&path).expect("made");
                std::fs::write(path.join("f"), "f").expect("written");
                std::fs::write(dir.join(format!("f-{wide}-{number}")), "f").expect("written");
            }
        }
        let whole = of_tree(&dir).expect("counted");
        assert_eq!(whole.inodes, 1 + 40 * 4 + 3 * 33);
        for limit in [0, 1, 7, 1000] {
            assert_eq!(of_tree_within(&dir, limit).expect("counted"), whole, "{limit}");
        }
        crate::sys::removal::remove_path(&dir).expect("removed");
    }

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
