//! What the runtime's first process must be able to reach once it is in the pod's own user namespace, where it is nobody to
//! the node's files: the bundle, and the sources of the container's binds.
//!
//! All of it happens in the creator, in a mount namespace of its own that ends with it. Sources are taken as detached
//! mounts while the creator may still open them, shown with the pod's owners where the request maps ids, and attached
//! among the bundle's volumes. Last, where a directory above the bundle is closed to others, a tmpfs covers it that
//! holds nothing but the way to the bundle.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::mount::MoveMountFlags;
use rustix::thread::UnshareFlags;

use super::fault::{Fault, Result};
use super::runtime::{SPEC_FILE, oci};
use super::user_namespace::UserNamespace;
use super::volumes;
use crate::sys::namespaces;
use crate::sys::overlay::clone_whole_tree;
use crate::sys::owners::show_as;

/// Sources that everybody reaches, and of which a copy would be another thing.
const AS_THEY_ARE: [&str; 2] = ["/proc", "/sys"];
/// Mode of a directory that others may pass through.
const PASSABLE: u32 = 0o711;
/// The bit that lets them.
const OTHERS_PASS: u32 = 0o001;
/// What others may do with a directory that serves everybody, to read and to write.
const OTHERS_READ: u32 = 0o005;
const OTHERS_WRITE: u32 = 0o007;
/// What others may do with a file that serves everybody.
const OTHERS_READ_FILE: u32 = 0o004;

/// Binds by their number in the specification, with the place that they are bound from.
pub type Moved = Vec<(usize, PathBuf)>;

/// Takes the sources of the container's binds. They are to be attached as volumes, from number `first` on.
pub fn take_sources(bundle: &Path, namespace: &UserNamespace, first: usize) -> Result<(Moved, Vec<OwnedFd>)> {
    namespaces::unshare(UnshareFlags::NEWNS).map_err(Fault::io("cannot make mounts of the creator's own"))?;
    let path = bundle.join(SPEC_FILE);
    let spec = oci::Spec::load(&path).map_err(Fault::because(format!("cannot read {}", path.display())))?;
    let (mut moved, mut taken) = (Vec::new(), Vec::new());
    for (number, wanted) in spec.mounts().iter().flatten().enumerate() {
        let Some(source) = wanted.source().as_deref().filter(|_| wanted.typ().as_deref() == Some("bind")) else {
            continue;
        };
        if AS_THEY_ARE.iter().any(|place| source == Path::new(place)) || source.starts_with(bundle) {
            continue;
        }
        moved.push((number, volumes::place(bundle, first + taken.len())));
        taken.push(take(source, wanted, namespace)?);
    }
    Ok((moved, taken))
}

fn take(source: &Path, wanted: &oci::Mount, namespace: &UserNamespace) -> Result<OwnedFd> {
    let failed = || format!("cannot take the mount {}", source.display());
    let tree = clone_whole_tree(source).map_err(Fault::io(failed()))?;
    if wanted.uid_mappings().is_none() {
        return Ok(tree);
    }
    match show_as(tree.as_fd(), namespace.descriptor().as_fd(), true) {
        Ok(()) => Ok(tree),
        Err(error) => {
            let metadata = fs::metadata(source).map_err(Fault::io(failed()))?;
            let read_only = wanted.options().iter().flatten().any(|option| option == "ro");
            let is_pods = namespace.ids().holds(metadata.uid());
            let fits = is_pods || serves_everybody(&metadata, read_only);
            fits.then_some(tree).ok_or_else(|| refused(source, &metadata, namespace, &error))
        }
    }
}

/// As it is, it does what it is for also when its owner is nobody inside.
fn serves_everybody(metadata: &Metadata, read_only: bool) -> bool {
    let needed = match (metadata.is_dir(), read_only) {
        (true, true) => OTHERS_READ,
        (true, false) => OTHERS_WRITE,
        // A kubelet's /etc/hosts may be written by its owner only.
        (false, _) => OTHERS_READ_FILE,
    };
    metadata.mode() & needed == needed
}

fn refused(source: &Path, metadata: &Metadata, namespace: &UserNamespace, error: &io::Error) -> Fault {
    let ids = namespace.ids();
    Fault::state(format!(
        "{} belongs to user {} of the node and cannot be shown with the pod's owners (its file system is mounted by another \
         user namespace, or cannot do it: {error}); give it to the pod with `chown {}:{}` plus the user inside, or to everybody \
         with `chmod o+rwx`, or use a volume in memory",
        source.display(),
        metadata.uid(),
        ids.first,
        ids.first
    ))
}

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

    #[test]
    fn a_volume_serves_everybody_when_others_may_do_with_it_what_the_container_would() {
        let path = std::env::temp_dir().join(format!("cricket-everybody-{}", std::process::id()));
        fs::create_dir_all(&path).expect("made");
        for (mode, read_only, serves) in
            [(0o777, false, true), (0o755, false, false), (0o755, true, true), (0o700, true, false)]
        {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
            assert_eq!(serves_everybody(&fs::metadata(&path).expect("there"), read_only), serves, "{mode:o}");
        }
        fs::remove_dir(&path).expect("removed");
    }
}
