//! The directories: run-time directory, disk, lingering.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statfs, statvfs};

use super::{Finding, NodeKind};
use crate::config::Config;
use crate::rootless::subordinate::User;

/// Below it the first image may not fit.
const FREE_BYTES_WANTED: u64 = 1 << 30;
/// NFS_SUPER_MAGIC of linux/magic.h.
const NFS_MAGIC: u64 = 0x6969;
const SYSTEMD_RUNS: &str = "/run/systemd/system";
const LINGER: &str = "/var/lib/systemd/linger";

/// All of them.
pub fn all(config: &Config, kind: NodeKind) -> Vec<Finding> {
    let mut findings = Vec::new();
    if kind == NodeKind::Made {
        findings.push(runtime_directory(&config.state));
        findings.extend(linger());
    }
    findings.push(disk(&config.root));
    findings
}

fn runtime_directory(state: &Path) -> Finding {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(directory) if directory.is_dir() => Finding::ok("run-time directory", state.display().to_string()),
        Some(directory) => Finding::warn(
            "run-time directory",
            format!("XDG_RUNTIME_DIR is {}, which is no directory", directory.display()),
            "log in anew (through systemd-logind), or give --state",
        ),
        None => Finding::warn(
            "run-time directory",
            format!("XDG_RUNTIME_DIR is not set: {} is used, also by your other logins", state.display()),
            "log in through systemd-logind (not `su`; `machinectl shell USER@` is one way), or give --state",
        ),
    }
}

fn linger() -> Option<Finding> {
    if !Path::new(SYSTEMD_RUNS).is_dir() {
        return None;
    }
    let user = User::current().name;
    Some(match Path::new(LINGER).join(&user).exists() {
        true => Finding::ok("linger", "pods outlive a logout"),
        false => {
            Finding::warn("linger", "systemd ends pods when you log out", format!("sudo loginctl enable-linger {user}"))
        }
    })
}

fn disk(root: &Path) -> Finding {
    let existing = nearest_existing(root);
    let place = root.display();
    if statfs(existing).is_ok_and(|fs| fs.f_type as u64 == NFS_MAGIC) {
        let meaning = format!("{place} lies on NFS, which cannot hold layers of images");
        return Finding::fail("disk", meaning, "give --root a directory on a local disk (ext4, xfs, btrfs)");
    }
    if let Err(error) = access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        let meaning = format!("{place} cannot be made: {}: {error}", existing.display());
        return Finding::fail("disk", meaning, "give --root (or CRICKET_ROOT) a directory that you may write to");
    }
    match statvfs(existing).map(|fs| fs.f_bavail * fs.f_frsize) {
        Ok(free) if free >= FREE_BYTES_WANTED => Finding::ok("disk", format!("{place}: {} GiB free", free >> 30)),
        Ok(free) => Finding::warn(
            "disk",
            format!("{place}: {} MiB free, too little for many images", free >> 20),
            "free some space, or give --root a directory on another disk",
        ),
        Err(error) => Finding::fail("disk", format!("{place}: {error}"), "give --root a directory that you may use"),
    }
}

/// The first of `path` and the directories above it that is there.
pub fn nearest_existing(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"))
}
