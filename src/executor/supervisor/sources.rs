//! What the container's binds are of: each source is opened once, and what was opened is what is mounted.
//!
//! The daemon has followed the links of a source, looked where they lead and written that path into the specification.
//! Who may write to a directory on it can put a link in its place since then. So the creator opens it without following
//! any, takes a detached copy of what it holds, and attaches that among the bundle's volumes, from where the runtime
//! binds it: it looks at no path of the node any more. One is held at a time, however many there are. They are attached
//! in mounts of the creator's own, which end with it.
//!
//! In a pod with a user namespace of its own the runtime would be nobody to the node's files, and what it binds is
//! shown with the pod's owners where the request maps ids.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::fault::{Fault, Result};
use super::runtime::{SPEC_FILE, oci};
use super::user_namespace::UserNamespace;
use super::volumes;
use crate::sys::overlay::clone_opened_tree;
use crate::sys::owners::show_as;

/// Sources that everybody reaches, and of which a copy would be another thing.
const AS_THEY_ARE: [&str; 2] = ["/proc", "/sys"];
/// What others may do with a directory that serves everybody, to read and to write.
const OTHERS_READ: u32 = 0o005;
const OTHERS_WRITE: u32 = 0o007;
/// What others may do with a file that serves everybody.
const OTHERS_READ_FILE: u32 = 0o004;

/// A bind that is bound from elsewhere.
#[derive(Debug)]
pub struct Moved {
    /// Its number in the specification.
    pub number: usize,
    /// Whence it is bound.
    pub place: PathBuf,
    /// Its source as the specification names it.
    pub source: PathBuf,
}

/// Takes the sources of the container's binds and attaches them as volumes, from number `first` on. What lies in the
/// `pod`'s own directory nobody else writes to: it stays where it is, unless the pod's users could not reach it there.
pub fn take(bundle: &Path, pod: &Path, namespace: Option<&UserNamespace>, first: usize) -> Result<Vec<Moved>> {
    let path = bundle.join(SPEC_FILE);
    let spec = oci::Spec::load(&path).map_err(Fault::because(format!("cannot read {}", path.display())))?;
    let mut moved = Vec::new();
    for (number, wanted) in spec.mounts().iter().flatten().enumerate() {
        let Some(source) = wanted.source().as_deref().filter(|_| wanted.typ().as_deref() == Some("bind")) else {
            continue;
        };
        let is_ours = source.starts_with(pod);
        let is_reached = source.starts_with(bundle) || (is_ours && namespace.is_none());
        if is_reached || AS_THEY_ARE.iter().any(|place| source == Path::new(place)) {
            continue;
        }
        let resolve = if is_ours { ResolveFlags::empty() } else { ResolveFlags::NO_SYMLINKS };
        let tree = take_one(source, resolve, wanted, namespace)?;
        let place = volumes::attach(bundle, first + moved.len(), &tree)?;
        moved.push(Moved { number, place, source: source.to_owned() });
    }
    Ok(moved)
}

fn take_one(
    source: &Path,
    resolve: ResolveFlags,
    wanted: &oci::Mount,
    namespace: Option<&UserNamespace>,
) -> Result<OwnedFd> {
    let failed = || format!("cannot take the mount {}", source.display());
    let opened = open(source, resolve)?;
    let tree = clone_opened_tree(opened.as_fd()).map_err(Fault::io(failed()))?;
    let Some(namespace) = namespace.filter(|_| wanted.uid_mappings().is_some()) else { return Ok(tree) };
    match show_as(tree.as_fd(), namespace.descriptor().as_fd(), true) {
        Ok(()) => Ok(tree),
        Err(error) => {
            let stat = rustix::fs::fstat(&opened).map_err(Fault::io(failed()))?;
            let read_only = wanted.options().iter().flatten().any(|option| option == "ro");
            let fits = namespace.ids().holds(stat.st_uid) || serves_everybody(&stat, read_only);
            fits.then_some(tree).ok_or_else(|| refused(source, stat.st_uid, namespace, &error))
        }
    }
}

/// As a directory first: that has an automounter mount it.
fn open(source: &Path, resolve: ResolveFlags) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open = |flags| rustix::fs::openat2(CWD, source, flags, Mode::empty(), resolve);
    let opened = match open(flags | OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) => open(flags),
        other => other,
    };
    opened.map_err(|errno| match errno {
        Errno::LOOP => Fault::state(format!(
            "the source {} of a mount became a link after it was looked at; it is not followed, try again",
            source.display()
        )),
        other => Fault::io(format!("cannot open the source {} of a mount", source.display()))(other),
    })
}

/// As it is, it does what it is for also when its owner is nobody inside.
fn serves_everybody(stat: &Stat, read_only: bool) -> bool {
    let needed = match (FileType::from_raw_mode(stat.st_mode).is_dir(), read_only) {
        (true, true) => OTHERS_READ,
        (true, false) => OTHERS_WRITE,
        // A kubelet's /etc/hosts may be written by its owner only.
        (false, _) => OTHERS_READ_FILE,
    };
    stat.st_mode & needed == needed
}

fn refused(source: &Path, owner: u32, namespace: &UserNamespace, error: &std::io::Error) -> Fault {
    let ids = namespace.ids();
    Fault::state(format!(
        "{} belongs to user {} of the node and cannot be shown with the pod's owners (its file system is mounted by another \
         user namespace, or cannot do it: {error}); give it to the pod with `chown {}:{}` plus the user inside, or to everybody \
         with `chmod o+rwx`, or use a volume in memory",
        source.display(),
        owner,
        ids.first,
        ids.first
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_source_that_becomes_a_link_is_refused_and_one_that_is_open_stays_what_it_was() {
        let base = std::env::temp_dir().join(format!("cricket-sources-{}", std::process::id()));
        let (volume, aside, secret) = (base.join("volume"), base.join("aside"), base.join("secret"));
        for directory in [&volume, &secret] {
            fs::create_dir_all(directory.join("below")).expect("made");
        }
        let base = fs::canonicalize(&base).expect("a path");
        let (below, volume) = (base.join("volume/below"), base.join("volume"));
        let ours = open(&below, ResolveFlags::NO_SYMLINKS).expect("opened");
        let before = rustix::fs::fstat(&ours).expect("looked at").st_ino;
        fs::rename(&volume, &aside).expect("moved");
        symlink(&secret, &volume).expect("a link");
        for swapped in [&volume, &below] {
            let fault = open(swapped, ResolveFlags::NO_SYMLINKS).expect_err("refused");
            assert!(fault.message.contains("became a link"), "{}", fault.message);
        }
        assert_eq!(rustix::fs::fstat(&ours).expect("looked at").st_ino, before);
        fs::write(base.join("file"), "").expect("a file");
        open(&base.join("file"), ResolveFlags::NO_SYMLINKS).expect("a file is a source too");
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
            assert_eq!(serves_everybody(&rustix::fs::stat(&path).expect("there"), read_only), serves, "{mode:o}");
        }
        fs::remove_dir(&path).expect("removed");
    }
}
