//! The cgroup v2 files that a supervisor reads and writes. Where the machine has no cgroup v2 for us every path is
//! empty and none of this is called, except [`stand_in`], without which libcontainer does not run.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::fs::{Mode, OFlags};
use rustix::thread::UnshareFlags;

use super::fault::{Fault, Result};

/// Where cgroup v2 is mounted.
const MOUNT_POINT: &str = "/sys/fs/cgroup";
/// Leaf of the pod's cgroup in which its supervisor lives: processes are only in leaves.
const SUPERVISOR_LEAF: &str = "supervisor";
/// `f_type` of cgroup v2.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// Times that a cgroup is tried to be removed while the kernel lets go of its dead.
const REMOVE_ATTEMPTS: u32 = 250;
/// Between two of these.
const REMOVE_PAUSE: std::time::Duration = std::time::Duration::from_millis(2);

/// The directory of a cgroup that a request names; `None` when it names none.
pub fn directory(path: &str) -> Result<Option<PathBuf>> {
    if path.is_empty() {
        return Ok(None);
    }
    let relative = path.trim_start_matches('/').trim_start_matches("sys/fs/cgroup/");
    if relative.is_empty() || relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Fault::invalid(format!("{path:?} is not the path of a cgroup")));
    }
    Ok(Some(Path::new(MOUNT_POINT).join(relative)))
}

/// Makes the cgroup of a pod's supervisor, to be born in. `None`: without cgroups.
pub fn of_supervisor(pod: &str) -> Result<Option<OwnedFd>> {
    let Some(pod) = directory(pod)? else { return Ok(None) };
    let leaf = pod.join(SUPERVISOR_LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Fault::io(format!("cannot make the cgroup {}", leaf.display()))(error));
        }
        _ => {}
    }
    open(&leaf).map(Some)
}

/// Opens a cgroup's directory.
pub fn open(directory: &Path) -> Result<OwnedFd> {
    rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Fault::io(format!("cannot open the cgroup {}", directory.display())))
}

/// Kills everything in a cgroup and below it.
pub fn kill(directory: &Path) -> io::Result<()> {
    fs::write(directory.join("cgroup.kill"), "1")
}

/// Freezes or thaws a cgroup.
pub fn freeze(directory: &Path, frozen: bool) -> Result<()> {
    fs::write(directory.join("cgroup.freeze"), if frozen { "1" } else { "0" })
        .map_err(Fault::io(format!("cannot freeze or thaw the cgroup {}", directory.display())))
}

/// The processes in a cgroup and in those below it.
pub fn processes(directory: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(directory.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
        .unwrap_or_default();
    for child in children(directory) {
        pids.extend(processes(&child));
    }
    pids
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// How often the kernel's out-of-memory killer struck in a cgroup.
pub fn oom_kills(directory: &Path) -> u64 {
    let events = fs::read_to_string(directory.join("memory.events")).unwrap_or_default();
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The controllers that limits of a cgroup in `pod` may use.
pub fn controllers(pod: &Path) -> Vec<String> {
    let text = fs::read_to_string(pod.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Removes a cgroup whose processes are dead, and those below it. The kernel may still be letting go of them.
pub fn remove(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove(&child)?;
    }
    for attempt in 1..=REMOVE_ATTEMPTS {
        match fs::remove_dir(directory) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempt < REMOVE_ATTEMPTS => {
                std::thread::sleep(REMOVE_PAUSE);
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Whether a process is in this cgroup, as this process sees cgroups.
pub fn holds(directory: &Path, pid: i32) -> bool {
    let Ok(path) = directory.strip_prefix(MOUNT_POINT) else { return false };
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("0::/")).is_some_and(|found| Path::new(found) == path)
}

/// For a machine without a cgroup v2 of ours, in this process's own mount namespace: libcontainer only knows cgroup v2
/// at its usual place and moves each container's process into a cgroup. So there is one, of a cgroup namespace of our
/// own, and moving and killing (which it does after a failed create) write to /dev/null.
pub fn stand_in() -> Result<()> {
    crate::sys::namespaces::unshare(UnshareFlags::NEWCGROUP).map_err(Fault::io("cannot make a cgroup namespace"))?;
    let there = rustix::fs::statfs(MOUNT_POINT)
        .map_err(Fault::io(format!("{MOUNT_POINT} is missing; mount /sys for the node")))?;
    let none: Option<&str> = None;
    if there.f_type as i64 != CGROUP2_MAGIC {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("cgroup2"), MOUNT_POINT, Some("cgroup2"), flags, none)
            .map_err(Fault::io(format!("cannot mount cgroup2 on {MOUNT_POINT}")))?;
    }
    for file in ["cgroup.procs", "cgroup.kill"] {
        let path = Path::new(MOUNT_POINT).join(file);
        match mount(Some("/dev/null"), &path, none, MsFlags::MS_BIND, none) {
            Err(nix::errno::Errno::ENOENT) | Ok(()) => {}
            Err(errno) => return Err(Fault::io(format!("cannot cover {}", path.display()))(errno)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_path_stays_below_the_mount_point() {
        assert_eq!(directory("").expect("none"), None);
        for path in ["/a/b", "a/b", "/sys/fs/cgroup/a/b"] {
            assert_eq!(directory(path).expect("good"), Some(PathBuf::from("/sys/fs/cgroup/a/b")));
        }
        for bad in ["/", "/a/../b", "//", "/a//b", "/sys/fs/cgroup/"] {
            assert!(directory(bad).is_err(), "{bad}");
        }
    }
}
