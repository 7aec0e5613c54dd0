//! The directories that the daemon needs: made 0700, and ours. Root and state belong together: pods have their records
//! in one and their supervisors in the other, and a daemon with another pair would take the ones for lost or the others
//! for strays. So each says whose it is.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::DaemonError;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::store::{self, RecordError};
use crate::sys::directory;

/// Nobody else may look in.
const MODE: u32 = 0o700;

/// In root and in state: the other one.
const PARTNER_FILE: &str = "partner.json";
/// In both, if there are pods.
const PODS: &str = "pods";

/// See [`PARTNER_FILE`].
#[derive(Debug, Serialize, Deserialize)]
struct Partner {
    version: u32,
    path: PathBuf,
}

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

/// Refuses a state that holds the pods of another root, and a root whose pods live in another state. Both are locked.
pub fn pair(config: &Config) -> Result<(), DaemonError> {
    if let Some(root) = partner(&config.state)?.filter(|root| *root != config.root && has_pods(&config.state)) {
        let (state, root) = (config.state.display(), root.display());
        return Err(wrong(
            &config.state,
            format!(
                "holds pods of the root {root}: give this daemon another --state, or end them first with `cricket stop --pods --state {state}`"
            ),
        ));
    }
    if let Some(state) = partner(&config.root)?.filter(|state| *state != config.state && has_pods(state)) {
        let state = state.display();
        return Err(wrong(
            &config.root,
            format!(
                "its pods live in the state directory {state}: use --state {state}, or end them first with `cricket stop --pods --state {state}`"
            ),
        ));
    }
    for (directory, path) in [(&config.state, &config.root), (&config.root, &config.state)] {
        // Nothing is written where nothing changes: a daemon on a full disk has to start, so that images can be
        // removed.
        if partner(directory)?.as_ref() == Some(path) {
            continue;
        }
        store::write(&directory.join(PARTNER_FILE), &Partner { version: 1, path: path.clone() })
            .map_err(|e| wrong(directory, e.to_string()))?;
    }
    Ok(())
}

/// The root whose daemon had this state last, as far as it says so.
pub fn root_of(state: &Path) -> Result<Option<PathBuf>, DaemonError> {
    partner(state)
}

/// A damaged one says nothing: what it says is only ever a reason to refuse.
fn partner(directory: &Path) -> Result<Option<PathBuf>, DaemonError> {
    match store::read::<Partner>(&directory.join(PARTNER_FILE)) {
        Ok(partner) => Ok(Some(partner.path)),
        Err(error) if error.is_not_found() || error.is_damaged() => Ok(None),
        Err(error) => Err(wrong(directory, RecordError::to_string(&error))),
    }
}

fn has_pods(state: &Path) -> bool {
    fs::read_dir(state.join(PODS)).is_ok_and(|mut entries| entries.next().is_some())
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
