//! Directories that nobody else may walk.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Makes `path` and what is missing above it, 0700. One that exists has to be ours and a directory (not a link to one);
/// rights of others to list or to write it are taken away, a right to pass (0711) stays.
pub fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is not a directory of this user: remove it or name another",
        ));
    }
    if meta.mode() & 0o066 != 0 {
        fs::set_permissions(path, Permissions::from_mode(meta.mode() & 0o711))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_may_list_is_closed_and_a_link_is_refused() {
        let base = std::env::temp_dir().join(format!("cricket-private-{}", std::process::id()));
        make_private(&base.join("a/b")).expect("made");
        fs::set_permissions(base.join("a/b"), Permissions::from_mode(0o755)).expect("opened up");
        make_private(&base.join("a/b")).expect("closed");
        assert_eq!(fs::metadata(base.join("a/b")).expect("there").mode() & 0o777, 0o711);
        std::os::unix::fs::symlink("a", base.join("link")).expect("linked");
        assert!(make_private(&base.join("link")).is_err());
        fs::remove_dir_all(&base).expect("removed");
    }
}
