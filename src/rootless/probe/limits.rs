//! Quotas of a user that many pods can exhaust.

use std::fs;

use super::{Finding, NodeKind, number};

/// A kubelet and the programs of a hundred pods.
const INOTIFY_INSTANCES_WANTED: u64 = 512;
/// See above.
const INOTIFY_WATCHES_WANTED: u64 = 65_536;
/// Cricket takes no key for a container; sessions and other runtimes do.
const KEYS_WANTED: u64 = 20;

/// All of them.
pub fn all(kind: NodeKind) -> Vec<Finding> {
    let mut findings = vec![inotify()];
    if kind == NodeKind::Made {
        findings.extend(keys());
    }
    findings
}

fn inotify() -> Finding {
    let instances = number("/proc/sys/fs/inotify/max_user_instances").unwrap_or(0);
    let watches = number("/proc/sys/fs/inotify/max_user_watches").unwrap_or(0);
    let found = format!("{instances} instances, {watches} watches a user");
    if let Err(error) = nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::IN_CLOEXEC) {
        return Finding::warn("inotify", format!("{found}, all in use ({error}): programs of pods will fail"), raise());
    }
    if instances < INOTIFY_INSTANCES_WANTED || watches < INOTIFY_WATCHES_WANTED {
        return Finding::warn("inotify", format!("{found}: few for many pods"), raise());
    }
    Finding::ok("inotify", found)
}

fn raise() -> String {
    format!(
        "printf 'fs.inotify.max_user_instances={INOTIFY_INSTANCES_WANTED}\\nfs.inotify.max_user_watches=524288\\n' | \
         sudo tee /etc/sysctl.d/90-cricket.conf && sudo sysctl --system"
    )
}

fn keys() -> Option<Finding> {
    let text = fs::read_to_string("/proc/key-users").ok()?;
    let (used, quota) = parse_keys(&text, rustix::process::getuid().as_raw())?;
    let found = format!("{used} of {quota} keys of this user are taken");
    Some(match quota.saturating_sub(used) >= KEYS_WANTED {
        true => Finding::ok("key quota", found),
        false => Finding::warn("key quota", found, "sudo sysctl -w kernel.keys.maxkeys=2000"),
    })
}

/// Taken keys and quota of `uid` in /proc/key-users (proc_key-users(5)).
fn parse_keys(text: &str, uid: u32) -> Option<(u64, u64)> {
    text.lines().find_map(|line| {
        let (who, rest) = line.split_once(':')?;
        if who.trim().parse() != Ok(uid) {
            return None;
        }
        // usage nkeys/nikeys qnkeys/maxkeys qnbytes/maxbytes
        let (used, quota) = rest.split_ascii_whitespace().nth(2)?.split_once('/')?;
        Some((used.parse().ok()?, quota.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_quota_is_read_from_the_line_of_the_user() {
        let text = "    0:    56 55/55 4/1000000 68/25000000\n 1500:     2 2/2 7/200 40/20000\n";
        assert_eq!(parse_keys(text, 1500), Some((7, 200)));
        assert_eq!(parse_keys(text, 15), None);
    }
}
