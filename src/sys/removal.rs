//! Removal of whole trees by descriptor: links are never followed, and depth costs neither stack nor descriptors.
//!
//! Below [`NESTING_LIMIT`] levels a directory is first renamed up into the tree's top, from where it is removed in its
//! turn; so a tree of 100,000 levels, which no path can name, goes like any other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat};
use rustix::io::{Errno, Result};

/// Directories open at once while a tree is removed.
const NESTING_LIMIT: usize = 32;

/// Removes `name` in `parent` and everything below; that there is none is fine.
pub fn remove_tree(parent: impl AsFd, name: &[u8]) -> Result<()> {
    let parent = parent.as_fd();
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // EPERM is what POSIX, and some file systems, answer for a directory.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let mut removal = Removal { top: open_directory(parent, name)?, hoisted: 0, removed: 0 };
    loop {
        let before = removal.hoisted + removal.removed;
        let top = removal.top.try_clone().map_err(|_| Errno::MFILE)?;
        removal.empty(top.as_fd(), 0)?;
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if removal.hoisted + removal.removed > before => {}
            Err(Errno::NOENT) => return Ok(()),
            result => return result,
        }
    }
}

/// As [`remove_tree`], for a path of ours.
pub fn remove_path(path: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    remove_tree(CWD, path.as_os_str().as_bytes())
}

struct Removal {
    top: OwnedFd,
    hoisted: u64,
    /// Entries that are gone.
    removed: u64,
}

impl Removal {
    fn empty(&mut self, directory: BorrowedFd<'_>, depth: usize) -> Result<()> {
        let mut entries = Dir::read_from(directory)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                self.remove_directory(directory, name, depth)?;
            } else {
                self.remove_entry(directory, name, depth)?;
            }
        }
        Ok(())
    }

    fn remove_entry(&mut self, directory: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<()> {
        match unlinkat(directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => self.remove_directory(directory, name, depth),
            result => self.count(result),
        }
    }

    /// What is gone already is no step forward.
    fn count(&mut self, result: Result<()>) -> Result<()> {
        match result {
            Err(Errno::NOENT) => Ok(()),
            Ok(()) => {
                self.removed += 1;
                Ok(())
            }
            result => result,
        }
    }

    fn remove_directory(&mut self, directory: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<()> {
        match unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            result => return self.count(result),
        }
        if depth >= NESTING_LIMIT {
            return self.hoist(directory, name);
        }
        let child = open_directory(directory, name)?;
        loop {
            let before = self.removed;
            self.empty(child.as_fd(), depth + 1)?;
            match unlinkat(directory, name, AtFlags::REMOVEDIR) {
                // Some file systems leave names out while others of the same directory go.
                Err(Errno::NOTEMPTY | Errno::EXIST) if self.removed > before => {}
                result => return self.count(result),
            }
        }
    }

    fn hoist(&mut self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        loop {
            self.hoisted += 1;
            let unused = format!(".hoisted-{}", self.hoisted);
            match renameat_with(directory, name, &self.top, unused.as_str(), RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                result => return result,
            }
        }
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // Our own directory with its read permission taken away; an owner may give it back.
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            openat(parent, name, flags, Mode::empty())
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// In memory where that is possible: some disks take a millisecond for each directory.
    fn scratch(name: &str) -> std::path::PathBuf {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = parent.join(format!("cricket-removal-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    #[test]
    fn a_tree_of_a_hundred_thousand_levels_is_removed() {
        let dir = scratch("deep");
        let mut at = openat(CWD, &dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("open");
        for _ in 0..100_000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).expect("a level");
            at = openat(&at, "d", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("its descriptor");
        }
        drop(at);
        remove_path(&dir).expect("removed");
        assert!(!dir.exists());
    }

    /// The same road as ten million: no memory and no descriptor for each.
    #[test]
    fn a_directory_of_many_entries_is_removed() {
        let dir = scratch("wide");
        for number in 0..20_000 {
            let name = dir.join(format!("entry-{number}"));
            match number % 10 {
                0 => std::fs::create_dir(&name).expect("made"),
                1 => std::fs::create_dir_all(name.join("inside/it")).expect("made"),
                _ => symlink("nowhere", &name).expect("linked"),
            }
        }
        remove_path(&dir).expect("removed");
        assert!(!dir.exists());
    }

    #[test]
    fn what_a_link_points_to_stays() {
        let (dir, outside) = (scratch("links"), scratch("outside"));
        std::fs::write(outside.join("kept"), "x").expect("written");
        symlink(&outside, dir.join("link")).expect("linked");
        std::fs::create_dir_all(dir.join("a/b/c")).expect("made");
        std::fs::write(dir.join("a/b/.hoisted-1"), "x").expect("written");
        remove_path(&dir).expect("removed");
        assert!(!dir.exists() && outside.join("kept").exists());
        remove_path(&dir).expect("a second time is fine");
        remove_path(&outside).expect("removed");
    }
}
