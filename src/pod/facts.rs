//! What the domain has to know of its surroundings, read once at start.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::pod::capabilities;
use crate::pod::error::PodError;
use crate::sys::{propagation, trial};

/// Longest text that is read from /proc.
const TEXT_LIMIT_BYTES: u64 = 64 << 10;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Told apart from the last boot by this.
    pub(crate) boot_id: String,
    /// The node's name.
    pub(crate) hostname: String,
    /// Our bounding set: nobody can be given more.
    pub(crate) capabilities: BTreeSet<&'static str>,
    /// First mapped user id and how many follow, per line of uid_map.
    pub(crate) users: Vec<(u32, u32)>,
    /// The same of group ids.
    pub(crate) groups: Vec<(u32, u32)>,
    /// The kernel made a user namespace for us.
    pub(crate) user_namespaces: bool,
    /// The kernel made a mount read-only with all below it.
    pub(crate) recursive_read_only: bool,
    /// AppArmor profiles can be applied.
    pub(crate) apparmor: bool,
    /// SELinux labels can be applied.
    pub(crate) selinux: bool,
    /// The kernel lets processes here change their supplementary groups.
    pub(crate) sets_groups: bool,
}

impl Facts {
    /// Of this process, which has joined the node.
    pub(crate) fn read() -> Result<Self, PodError> {
        let status = text("/proc/self/status")?;
        let bounding = status.lines().find_map(|l| l.strip_prefix("CapBnd:"));
        let mask = bounding.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or_default();
        Ok(Self {
            boot_id: text("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            capabilities: capabilities::of_mask(mask),
            users: text("/proc/self/uid_map")?.lines().filter_map(range).collect(),
            groups: text("/proc/self/gid_map")?.lines().filter_map(range).collect(),
            user_namespaces: tried("user namespaces", trial::user_namespace()),
            recursive_read_only: tried("recursive read-only mounts", propagation::try_read_only_below()),
            apparmor: fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.starts_with('Y')),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            sets_groups: groups_can_be_set(),
        })
    }

    /// Whether a group id means anything here.
    pub(crate) fn maps_group(&self, id: u32) -> bool {
        self.groups.iter().any(|(first, count)| id >= *first && id - first < *count)
    }
}

/// Whoever maps a user namespace without the help of newgidmap has to deny it.
fn groups_can_be_set() -> bool {
    let denied = fs::read_to_string("/proc/self/setgroups").is_ok_and(|setting| setting.trim() == "deny");
    if denied {
        tracing::warn!(
            "setgroups is denied in this user namespace: containers run without supplementary groups, and those that ask for some are refused"
        );
    }
    !denied
}

/// Whether it worked; why not is for whoever wonders about the features in Status.
fn tried(what: &str, result: std::io::Result<()>) -> bool {
    if let Err(error) = &result {
        tracing::info!(%error, "{what} are not offered: the kernel refuses them here");
    }
    result.is_ok()
}

fn text(path: &str) -> Result<String, PodError> {
    use std::io::Read;
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|e| PodError::io(format_args!("open {path}"), &e))?;
    file.take(TEXT_LIMIT_BYTES).read_to_string(&mut text).map_err(|e| PodError::io(format_args!("read {path}"), &e))?;
    Ok(text)
}

fn range(line: &str) -> Option<(u32, u32)> {
    let mut fields = line.split_whitespace();
    let first = fields.next()?.parse().ok()?;
    Some((first, fields.nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_mapped_when_a_range_holds_it() {
        let facts = Facts {
            groups: ["         0       1500          1", "1 100000 65536"].into_iter().filter_map(range).collect(),
            ..Facts::read().expect("this machine has facts")
        };
        for (id, mapped) in [(0, true), (5, true), (65536, true), (65537, false)] {
            assert_eq!(facts.maps_group(id), mapped, "{id}");
        }
    }
}
