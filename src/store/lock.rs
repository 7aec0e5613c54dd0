//! One daemon per root and per state: `ROOT/lock` and `STATE/lock`, held with flock(2) as long as its daemon lives; the
//! text in it is the daemon's pid and the time it was started, for whoever finds it held.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::sys::process::ProcessId;

const FILE: &str = "lock";
/// More than two numbers need.
const TEXT_LIMIT_BYTES: u64 = 64;

/// The lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon has it.
    #[error(
        "a cricket daemon (pid {holder}) uses {root} already: end it with `cricket stop`, or give this one another --root and --state"
    )]
    Held {
        /// The directory.
        root: PathBuf,
        /// The other daemon's pid, or `unknown`.
        holder: String,
    },
    /// The file system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Held until it is dropped or its process ends, however it ends. Children do not inherit it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the directory `root` (or state; 0700) where there is none, and takes its lock.
    pub fn acquire(root: &Path) -> Result<Self, LockError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(refused("make", root))?;
        let path = root.join(FILE);
        let mut file = open(&path, true).map_err(refused("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = read_holder(&mut file).map_or_else(|| "unknown".to_owned(), |id| id.pid.to_string());
                return Err(LockError::Held { root: root.to_owned(), holder });
            }
            Err(error) => return Err(refused("lock", &path)(error.into())),
        }
        write_holder(&mut file).map_err(refused("write", &path))?;
        Ok(Self { _file: file })
    }

    /// Refuses a root whose lock is held. Nothing is made or taken.
    pub fn refuse_held(root: &Path) -> Result<(), LockError> {
        match Self::holder(root)? {
            Some(holder) => Err(LockError::Held { root: root.to_owned(), holder: holder.pid.to_string() }),
            None => Ok(()),
        }
    }

    /// The daemon that holds the lock of `root`; none where nobody does.
    pub fn holder(root: &Path) -> Result<Option<ProcessId>, LockError> {
        let path = root.join(FILE);
        let mut file = match open(&path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(refused("open", &path))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(read_holder(&mut file).filter(ProcessId::is_alive)),
            Err(error) => Err(refused("look at", &path)(error.into())),
        }
    }
}

fn refused(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LockError {
    let path = path.to_owned();
    move |source| LockError::Io { action, path, source }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    // O_NOFOLLOW: the directory is ours, but --root may name any.
    OpenOptions::new().read(true).write(true).create(create).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn write_holder(file: &mut File) -> io::Result<()> {
    let own = ProcessId::own()?;
    file.set_len(0)?;
    file.write_all(format!("{} {}\n", own.pid, own.start_time).as_bytes())
}

fn read_holder(file: &mut File) -> Option<ProcessId> {
    let mut text = String::new();
    file.take(TEXT_LIMIT_BYTES).read_to_string(&mut text).ok()?;
    let (pid, start_time) = text.trim().split_once(' ')?;
    Some(ProcessId { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_on_the_same_root_is_refused_by_name() {
        let root = std::env::temp_dir().join(format!("cricket-lock-{}", std::process::id()));
        let lock = Lock::acquire(&root).expect("taken");
        let error = Lock::acquire(&root).expect_err("refused").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert!(error.contains(&root.display().to_string()), "{error}");
        assert_eq!(Lock::holder(&root).expect("read").map(|id| id.pid), Some(std::process::id() as i32));
        drop(lock);
        assert_eq!(Lock::holder(&root).expect("read"), None);
        Lock::acquire(&root).expect("free again");
        fs::remove_dir_all(&root).expect("removed");
    }
}
