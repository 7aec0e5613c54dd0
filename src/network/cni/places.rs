//! Where plugins run: in the node's network namespace, and where the machine's `/var/lib/cni` is not theirs to write
//! (an ordinary user's node) in a mount namespace that shows directories of ours in place of those where plugins keep
//! something. Nothing of that is seen in the node or on the machine.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_bind_recursive, mount_change};
use rustix::thread::UnshareFlags;

use crate::sys::namespace::{Namespace, inode};
use crate::sys::namespaces;

use super::error::CniError;

/// Where plugins keep what they have given out, unless they are told otherwise.
const PLUGINS_STATE: &str = "/var/lib/cni";
/// Where some keep more: tuning what it changed, kindnet's host-local its addresses.
const PLUGINS_RUN: [&str; 2] = ["/run/cni", "/run/cni-ipam-state"];
/// What iptables' older variant locks, and the variable that names another file.
const TABLES_LOCK: &str = "/run/xtables.lock";
const TABLES_LOCK_VARIABLE: &str = "XTABLES_LOCKFILE";
/// Where plugins look for iptables, which an ordinary user's PATH leaves out.
const SYSTEM_PATH: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// See the module.
#[derive(Debug)]
pub struct Places {
    /// To be joined, in this order.
    pub namespaces: Vec<OwnedFd>,
    /// Variables beside those of CNI.
    pub environment: Vec<(&'static str, String)>,
}

impl Places {
    /// `node` is the node's network namespace; `own` a directory of ours that is used where it is needed.
    pub fn prepare(node: &OwnedFd, own: impl FnOnce() -> Result<PathBuf, CniError>) -> Result<Self, CniError> {
        let mut namespaces = Vec::new();
        let mut environment = vec![("PATH", search_path())];
        // To join one's own asks for rights that the uid 0 of somebody's user namespace may lack.
        let (ours, nodes) = (Namespace::Network.inode_of(std::process::id() as i32), inode(node));
        if ours.ok() != nodes.ok() {
            namespaces.push(node.try_clone().map_err(CniError::io("duplicate the node's network namespace"))?);
        }
        if !can_be_written(Path::new(PLUGINS_STATE)) {
            let own = own()?;
            let lock = own.join("xtables.lock");
            if std::env::var_os(TABLES_LOCK_VARIABLE).is_none() && !can_be_written(Path::new(TABLES_LOCK)) {
                environment.push((TABLES_LOCK_VARIABLE, lock.display().to_string()));
            }
            let made = shadowed(&own)
                .map_err(CniError::io(format!("show plugins {} in place of {PLUGINS_STATE}", own.display())));
            // First: the plugin's program and the pod's path are looked up where it has led.
            namespaces.insert(0, made?);
        }
        Ok(Self { namespaces, environment })
    }
}

/// Exists and is writable, or could be made.
fn can_be_written(path: &Path) -> bool {
    let there = path.ancestors().find(|path| path.exists());
    there.is_some_and(|path| rustix::fs::access(path, Access::WRITE_OK).is_ok())
}

fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    let missing = SYSTEM_PATH.into_iter().filter(|dir| !own.split(':').any(|has| has == *dir));
    own.split(':').filter(|dir| !dir.is_empty()).chain(missing).collect::<Vec<_>>().join(":")
}

/// A mount namespace like ours but for the directories where plugins write. Made in a thread, which is in it alone and
/// ends.
fn shadowed(own: &Path) -> io::Result<OwnedFd> {
    let own = own.to_owned();
    let thread = std::thread::Builder::new().name("cni-mounts".to_owned()).spawn(move || -> io::Result<OwnedFd> {
        namespaces::unshare(UnshareFlags::NEWNS | UnshareFlags::FS)?;
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        shadow(Path::new(PLUGINS_STATE), &own)?;
        for place in PLUGINS_RUN.into_iter().map(Path::new).filter(|place| !can_be_written(place)) {
            shadow(place, &own)?;
        }
        Ok(File::open("/proc/thread-self/ns/mnt")?.into())
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended by a defect")))
}

/// Shows a directory below `own` at `place`. What of it is not there nobody can make: so the deepest directory that is
/// there is covered by one of ours, in which everything that it has is found again.
fn shadow(place: &Path, own: &Path) -> io::Result<()> {
    let shown = |path: &Path| own.join(path.strip_prefix("/").unwrap_or(path));
    fs::create_dir_all(shown(place))?;
    if place.is_dir() {
        return Ok(mount_bind(shown(place), place)?);
    }
    let hidden = place.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let (cover, inside) = (shown(hidden), place.strip_prefix(hidden).unwrap_or(place));
    for entry in fs::read_dir(hidden)? {
        let entry = entry?;
        if inside.starts_with(entry.file_name()) {
            continue;
        }
        // What cannot be shown (it went meanwhile, or a socket's place was taken) is only missed by who needs it.
        if let Err(error) = show_again(&entry, &cover.join(entry.file_name())) {
            tracing::debug!(%error, entry = %entry.path().display(), "plugins do not see it");
        }
    }
    Ok(mount_bind_recursive(&cover, hidden)?)
}

fn show_again(entry: &fs::DirEntry, at: &Path) -> io::Result<()> {
    let kind = entry.file_type()?;
    if kind.is_symlink() {
        let target = fs::read_link(entry.path())?;
        return match fs::read_link(at) {
            Ok(known) if known == target => Ok(()),
            _ => {
                let _ = fs::remove_file(at);
                std::os::unix::fs::symlink(target, at)
            }
        };
    }
    match kind.is_dir() {
        true => fs::create_dir_all(at)?,
        false => drop(File::options().create(true).append(true).open(at)?),
    }
    Ok(mount_bind_recursive(entry.path(), at)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_can_be_written_when_what_is_there_of_it_can() {
        let dir = std::env::temp_dir();
        assert!(can_be_written(&dir.join("cricket-not-there/cni")));
        assert!(!can_be_written(Path::new("/proc/self/cni")));
    }

    #[test]
    fn iptables_is_found_wherever_the_daemon_was_started() {
        let path = search_path();
        assert!(SYSTEM_PATH.iter().all(|dir| path.split(':').filter(|has| has == dir).count() == 1), "{path}");
    }
}
