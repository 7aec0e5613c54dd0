//! Cgroups of pods: made before the supervisor, removed after it. Those of a kubelet are its own: in them only what
//! was made for this pod goes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::pod::error::PodError;
use crate::pod::record::{ContainerRecord, PodRecord};
use crate::rootless::cgroups;

/// Where cgroup v2 is mounted in the node.
const MOUNT: &str = "/sys/fs/cgroup";
/// Below which the cgroups of pods live whose client names no parent.
pub(crate) const OWN_PARENT: &str = cgroups::TOP_LEVEL;
/// The supervisor's own, in the pod's.
const SUPERVISOR_LEAF: &str = "supervisor";
/// How often and how far apart a cgroup is tried whose dead the kernel still holds.
const REMOVE_ATTEMPTS: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(2);

/// The directory of an absolute cgroup path.
pub(crate) fn directory(cgroup: &Path) -> PathBuf {
    Path::new(MOUNT).join(cgroup.strip_prefix("/").unwrap_or(cgroup))
}

/// The cgroup path of a directory.
pub(crate) fn path(directory: &Path) -> PathBuf {
    Path::new("/").join(directory.strip_prefix(MOUNT).or_else(|_| directory.strip_prefix("/")).unwrap_or(directory))
}

/// Makes a pod's cgroup with every controller that is to be had on the way. Blocking.
pub(crate) fn make(pod: &Path) -> Result<(), PodError> {
    let target = directory(pod);
    let mut levels: Vec<&Path> = target.ancestors().take_while(|level| *level != Path::new(MOUNT)).collect();
    levels.reverse();
    for level in levels {
        // Also in one that is there: whoever made it may have left them out.
        if let Some(parent) = level.parent() {
            cgroups::enable(parent);
        }
        match fs::create_dir(level) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PodError::io(format_args!("make the cgroup {}", level.display()), &error));
            }
            _ => {}
        }
    }
    cgroups::enable(&target);
    Ok(())
}

/// Removes what was made for a pod whose processes are dead. Blocking; what stays is told in the log alone, because
/// it costs nothing and the next pod does not meet it.
pub(crate) fn remove(pod: &PodRecord, containers: &[impl AsRef<ContainerRecord>]) {
    let Some(cgroup) = &pod.cgroup else { return };
    let target = directory(cgroup);
    let named_by_client = pod.config.linux.as_ref().is_some_and(|l| !l.cgroup_parent.is_empty());
    let mut leaves: Vec<PathBuf> = vec![target.join(SUPERVISOR_LEAF)];
    leaves.extend(containers.iter().map(|c| directory(&c.as_ref().cgroup)));
    if !named_by_client {
        leaves = vec![target];
    }
    for leaf in leaves {
        if let Err(error) = remove_tree(&leaf) {
            tracing::warn!(pod = %pod.id, cgroup = %leaf.display(), %error, "a cgroup was not removed");
        }
    }
}

fn remove_tree(target: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(target) else { return Ok(()) };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_tree(&entry.path())?;
    }
    for attempt in 1..=REMOVE_ATTEMPTS {
        match fs::remove_dir(target) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempt < REMOVE_ATTEMPTS => {
                std::thread::sleep(REMOVE_PAUSE);
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_seen_from_the_root_of_the_cgroup_file_system() {
        for (given, expected) in [("/sys/fs/cgroup", "/"), ("/sys/fs/cgroup/a/b", "/a/b"), ("/a", "/a")] {
            assert_eq!(path(Path::new(given)), PathBuf::from(expected));
        }
        assert_eq!(directory(Path::new("/a/b")), PathBuf::from("/sys/fs/cgroup/a/b"));
    }
}
