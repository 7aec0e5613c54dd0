//! The directories that the daemon needs: made 0700, and ours.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use super::DaemonError;
use crate::config::Config;
use crate::sys::directory;

/// Nobody else may look in.
const MODE: u32 = 0o700;

/// `/tmp` and its like.
const STICKY: u32 = 0o1000;

/// Makes root, state and the socket's directory where they are missing. Root and state must be ours and are closed
/// to others; the socket's own directory is left as it is when somebody else made it.
pub fn prepare(config: &Config) -> Result<(), DaemonError> {
    for dir in [&config.root, &config.state] {
        directory::make_private(dir).map_err(|e| wrong(dir, format!("cannot be used: {e}")))?;
    }
    let Some(parent) = config.socket.parent() else { return Ok(()) };
    let made = DirBuilder::new().recursive(true).mode(MODE).create(parent);
    made.map_err(|e| wrong(parent, format!("cannot be made: {e}")))
}

/// A directory such as /tmp would be taken away from everybody else.
pub fn refuse_shared(config: &Config) -> Result<(), DaemonError> {
    refuse_sticky(&config.root)?;
    refuse_sticky(&config.state)
}

fn refuse_sticky(dir: &Path) -> Result<(), DaemonError> {
    match fs::metadata(dir) {
        Ok(metadata) if metadata.mode() & STICKY != 0 => {
            Err(wrong(dir, "is shared with others: name a directory below it".to_owned()))
        }
        _ => Ok(()),
    }
}

fn wrong(path: &Path, problem: String) -> DaemonError {
    DaemonError::Directory { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_shared_with_others_is_not_taken_from_them() {
        assert!(refuse_sticky(Path::new("/tmp")).is_err());
        assert!(refuse_sticky(Path::new("/nowhere/cricket")).is_ok());
    }
}
