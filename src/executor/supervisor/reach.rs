//! The way to the bundle for the runtime's first process once it is in the pod's own user namespace, where it is nobody
//! to the node's files. What its binds are of is taken before (`sources`).
//!
//! In the creator, in its own mounts: where a directory above the bundle is closed to others, a tmpfs covers it that
//! holds nothing but the way to the bundle.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::mount::MoveMountFlags;

use super::fault::{Fault, Result};
use crate::sys::overlay::clone_whole_tree;

/// Mode of a directory that others may pass through.
const PASSABLE: u32 = 0o711;
/// The bit that lets them.
const OTHERS_PASS: u32 = 0o001;

/// Lets others pass to the bundle: only in this process's mounts, which are its own.
pub fn make_reachable(bundle: &Path) -> Result<()> {
    let failed = || format!("cannot make {} reachable for the pod's users", bundle.display());
    fs::set_permissions(bundle, Permissions::from_mode(PASSABLE)).map_err(Fault::io(failed()))?;
    let Some(closed) = closed_above(bundle).map_err(Fault::io(failed()))? else { return Ok(()) };
    let tree = clone_whole_tree(bundle).map_err(Fault::io(failed()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("way"), &closed, Some("tmpfs"), flags, Some("mode=711,size=64k")).map_err(Fault::io(failed()))?;
    DirBuilder::new().recursive(true).mode(PASSABLE).create(bundle).map_err(Fault::io(failed()))?;
    rustix::mount::move_mount(&tree, "", rustix::fs::CWD, bundle, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(Fault::io(failed()))
}

/// The outermost directory on the way to `bundle` that others may not pass.
fn closed_above(bundle: &Path) -> io::Result<Option<PathBuf>> {
    let mut above: Vec<&Path> = bundle.ancestors().skip(1).filter(|path| *path != Path::new("/")).collect();
    above.reverse();
    for path in above {
        if fs::metadata(path)?.mode() & OTHERS_PASS == 0 {
            return Ok(Some(path.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_closed_directory_is_the_one_that_is_covered() {
        let base = std::env::temp_dir().join(format!("cricket-reach-{}", std::process::id()));
        let bundle = base.join("a/b/bundle");
        fs::create_dir_all(&bundle).expect("made");
        for (path, mode) in [(&base, 0o755), (&base.join("a"), 0o700), (&base.join("a/b"), 0o700)] {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("set");
        }
        assert_eq!(closed_above(&bundle).expect("looked"), Some(base.join("a")));
        fs::set_permissions(base.join("a"), Permissions::from_mode(0o711)).expect("set");
        assert_eq!(closed_above(&bundle).expect("looked"), Some(base.join("a/b")));
        fs::set_permissions(base.join("a/b"), Permissions::from_mode(0o711)).expect("set");
        assert_eq!(closed_above(&bundle).expect("looked"), None);
        fs::remove_dir_all(&base).expect("removed");
    }
}
