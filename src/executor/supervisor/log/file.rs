//! The log file: opened where it was asked for and nowhere else, and appended to by whole lines.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::LogError;

/// Of a new log: its owner writes, a group that was given the directory may read.
const MODE: Mode = Mode::from_raw_mode(0o640);

/// Where a log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPath {
    /// Trusted: symbolic links in it are followed.
    directory: PathBuf,
    /// Below it, nothing is.
    name: PathBuf,
}

impl LogPath {
    /// From `CreateContainer`. `None` when the container is to have no log. Below `directory` (empty: the directory
    /// of `path`), which is the caller's word, nothing is followed.
    pub fn new(path: &str, directory: &str) -> Result<Option<Self>, LogError> {
        if path.is_empty() {
            return Ok(None);
        }
        let bad = || LogError::BadPath(path.to_owned(), directory.to_owned());
        let path = Path::new(path);
        let directory = match directory {
            "" => path.parent().ok_or_else(bad)?,
            directory => Path::new(directory),
        };
        let name = path.strip_prefix(directory).map_err(|_| bad())?;
        let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
        if !directory.is_absolute() || name.as_os_str().is_empty() || !plain {
            return Err(bad());
        }
        Ok(Some(Self { directory: directory.to_owned(), name: name.to_owned() }))
    }

    /// For messages.
    pub fn full(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    /// The directory, and the name below it.
    pub fn parts(&self) -> (&Path, &Path) {
        (&self.directory, &self.name)
    }

    /// Of one that was looked at before.
    pub fn of_parts(directory: PathBuf, name: PathBuf) -> Self {
        Self { directory, name }
    }
}

/// Lines that could not be written, and why.
#[derive(Debug)]
pub struct Unwritten {
    /// How many bytes of the lines are in the file: a whole number of lines.
    pub written: usize,
    /// What the kernel said.
    pub source: io::Error,
    /// Nothing was said yet: the disk is at it, and they must not be written again.
    pub is_pending: bool,
}

impl Unwritten {
    /// None is in the file.
    pub fn nothing(source: io::Error) -> Self {
        Self { written: 0, source, is_pending: false }
    }

    /// See `is_pending`.
    pub fn pending() -> Self {
        Self { is_pending: true, ..Self::nothing(io::ErrorKind::TimedOut.into()) }
    }
}

/// See the module.
#[derive(Debug)]
pub struct LogFile {
    path: LogPath,
    file: File,
}

impl LogFile {
    /// Opens the file, making it if there is none.
    pub fn open(path: LogPath) -> Result<Self, LogError> {
        let file = open(&path)?;
        Ok(Self { path, file })
    }

    /// Opens the same path again. On error the open file stays, and none is made.
    pub fn reopen(&mut self) -> Result<(), LogError> {
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Appends whole lines. When that fails half way, the file is cut back to the end of the last whole line.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), Unwritten> {
        let mut written = 0;
        while written < lines.len() {
            match rustix::io::write(&self.file, &lines[written..]) {
                Ok(0) => return Err(self.cut_back(lines, written, io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(self.cut_back(lines, written, errno.into())),
            }
        }
        Ok(())
    }

    fn cut_back(&self, lines: &[u8], written: usize, source: io::Error) -> Unwritten {
        let whole = lines[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let torn = (written - whole) as u64;
        let cut = || self.file.set_len(self.file.metadata()?.len().saturating_sub(torn));
        match torn == 0 || cut().is_ok() {
            true => Unwritten { written: whole, source, is_pending: false },
            // The file has the beginning of a line; going on from there makes it whole again.
            false => Unwritten { written, source, is_pending: false },
        }
    }
}

fn open(path: &LogPath) -> Result<File, LogError> {
    let failed = |errno: rustix::io::Errno| match errno {
        rustix::io::Errno::LOOP => LogError::SymbolicLink(path.full()),
        // A FIFO without reader.
        rustix::io::Errno::NXIO | rustix::io::Errno::ISDIR => LogError::NotAFile(path.full()),
        errno => LogError::Open { path: path.full(), source: errno.into() },
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&path.directory, flags, Mode::empty()).map_err(failed)?;
    let file = open_beneath(&directory, &path.name).map_err(failed)?;
    let status = rustix::fs::fstat(&file).map_err(failed)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(LogError::NotAFile(path.full()));
    }
    Ok(File::from(file))
}

fn open_beneath(directory: &OwnedFd, name: &Path) -> rustix::io::Result<OwnedFd> {
    // NONBLOCK: neither a FIFO nor a device is waited for; it has no meaning for a regular file.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(directory, name, flags, MODE, resolve) {
            // A rename elsewhere made the kernel unsure; it says to try again.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cricket-log-file-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.join("sub")).expect("a directory");
        path
    }

    fn path(directory: &Path, name: &str) -> LogPath {
        let full = directory.join(name);
        LogPath::new(full.to_str().expect("text"), directory.to_str().expect("text")).expect("good").expect("a log")
    }

    #[test]
    fn a_log_path_is_a_plain_name_below_its_directory() {
        for (path, directory, good) in [
            ("/logs/a/0.log", "/logs", true),
            ("/logs/a/0.log", "", true),
            ("/logs/../etc/passwd", "/logs", false),
            ("/logs/a/../../b", "/logs", false),
            ("/etc/passwd", "/logs", false),
            ("/logsx/a", "/logs", false),
            ("/logs", "/logs", false),
            ("relative/a", "", false),
            ("/", "", false),
        ] {
            assert_eq!(LogPath::new(path, directory).is_ok(), good, "{path} in {directory}");
        }
        assert_eq!(LogPath::new("", "/logs").expect("no log"), None);
    }

    #[test]
    fn symbolic_links_fifos_devices_and_directories_are_refused_and_untouched() {
        let logs = directory("refused");
        let outside = directory("outside");
        symlink(outside.join("victim"), logs.join("link")).expect("link");
        symlink(&outside, logs.join("linked-dir")).expect("link");
        symlink("/dev/null", logs.join("device-link")).expect("link");
        rustix::fs::mknodat(rustix::fs::CWD, logs.join("fifo"), FileType::Fifo, MODE, 0).expect("fifo");
        for (name, symbolic) in
            [("link", true), ("linked-dir/x", true), ("device-link", true), ("fifo", false), ("sub", false)]
        {
            match LogFile::open(path(&logs, name)) {
                Err(LogError::SymbolicLink(_)) if symbolic => {}
                Err(LogError::NotAFile(_)) if !symbolic => {}
                other => panic!("{name}: {other:?}"),
            }
        }
        // A FIFO with a reader can be opened: it is refused by what it is.
        let _reader = rustix::fs::open(logs.join("fifo"), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
        assert!(matches!(LogFile::open(path(&logs, "fifo")), Err(LogError::NotAFile(_))));
        assert_eq!(std::fs::read_dir(&outside).expect("listed").count(), 1, "only what was there");
        for path in [logs, outside] {
            std::fs::remove_dir_all(path).expect("removed");
        }
    }

    #[test]
    fn the_file_is_made_appended_to_and_made_anew_after_a_rename() {
        let logs = directory("reopen");
        std::fs::write(logs.join("sub/0.log"), "before\n").expect("written");
        let mut log = LogFile::open(path(&logs, "sub/0.log")).expect("open");
        log.append(b"one\n").expect("written");
        std::fs::rename(logs.join("sub/0.log"), logs.join("sub/0.log.1")).expect("renamed");
        log.append(b"two\n").expect("written");
        log.reopen().expect("reopened");
        log.append(b"three\n").expect("written");
        assert_eq!(std::fs::read_to_string(logs.join("sub/0.log.1")).expect("read"), "before\none\ntwo\n");
        assert_eq!(std::fs::read_to_string(logs.join("sub/0.log")).expect("read"), "three\n");
        std::fs::rename(logs.join("sub"), logs.join("gone")).expect("renamed");
        assert!(matches!(log.reopen(), Err(LogError::Open { .. })));
        log.append(b"four\n").expect("the old file stays open");
        assert_eq!(std::fs::read_to_string(logs.join("gone/0.log")).expect("read"), "three\nfour\n");
        std::fs::remove_dir_all(logs).expect("removed");
    }
}
