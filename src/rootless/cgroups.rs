//! What of cgroup v2 is ours, and how it is laid out.
//!
//! In a made node the cgroup that this process was started in (the *base*; systemd delegated it) becomes the root of
//! the node's cgroup namespace. The kernel lets a cgroup with controllers for children have no process of its own, so
//! ours sit in the leaves BASE/daemon and BASE/node. Elsewhere pods without a parent cgroup go below
//! /sys/fs/cgroup/cricket, or below our own cgroup where only that may be written to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;

use super::Cgroups;

/// Where the hierarchy is mounted.
pub const MOUNT: &str = "/sys/fs/cgroup";
/// Leaf of the daemon.
pub const DAEMON_LEAF: &str = "daemon";
/// Leaf of the node process and of what `cricket enter` runs.
pub const NODE_LEAF: &str = "node";
/// Below which the cgroups of pods live whose client names no parent.
pub const TOP_LEVEL: &str = "cricket";
/// What a kubelet wants.
pub const WANTED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// CGROUP2_SUPER_MAGIC of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Whether /sys/fs/cgroup is the unified hierarchy.
pub fn is_unified() -> bool {
    statfs(MOUNT).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_MAGIC)
}

/// The cgroup v2 of this process, as a directory.
pub fn own() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    parse_own(&text).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "this process is in no cgroup v2"))
}

fn parse_own(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // A path with `..` lies outside of our cgroup namespace.
    (!path.split('/').any(|part| part == "..")).then(|| Path::new(MOUNT).join(path))
}

/// The cgroup that was delegated to this process, for a node to be made in it, or why there is none.
pub fn delegated_base() -> Result<PathBuf, String> {
    if !is_unified() {
        return Err(no_unified());
    }
    let own = own().map_err(|error| format!("no limits can be enforced: {error}"))?;
    // Below a unit with DelegateSubgroup=daemon, or in a restarted daemon's leaf.
    let base = match own.parent() {
        Some(parent) if own.ends_with(DAEMON_LEAF) && may_divide(parent) => parent.to_owned(),
        _ => own,
    };
    if may_divide(&base) {
        return Ok(base);
    }
    Err(format!(
        "no limits can be enforced: the cgroup {} is not delegated to this user: start from a user unit with \
         Delegate=yes, or with `systemd-run --user --scope -p Delegate=yes cricket serve`",
        base.display()
    ))
}

fn no_unified() -> String {
    "no limits can be enforced: this machine has no unified cgroup v2 on /sys/fs/cgroup: boot it with the kernel \
     parameter systemd.unified_cgroup_hierarchy=1"
        .to_owned()
}

/// Tried with the real operation: a child is made and removed.
fn may_divide(cgroup: &Path) -> bool {
    let probe = cgroup.join(format!("cricket-probe-{}", std::process::id()));
    let divided = fs::create_dir(&probe).is_ok();
    let writable = divided && fs::OpenOptions::new().write(true).open(cgroup.join("cgroup.subtree_control")).is_ok();
    if divided {
        // An empty cgroup goes at once; if not, it is in nobody's way.
        let _ = fs::remove_dir(&probe);
    }
    writable
}

/// Moves this process into `cgroup`, which is made where there is none.
pub fn move_into(cgroup: &Path) -> io::Result<()> {
    match fs::create_dir(cgroup) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // 0 is the writer, which spares a lookup and is right in every PID namespace.
    fs::write(cgroup.join("cgroup.procs"), "0")
}

/// Takes controllers away from the children of `base`, and first from theirs, so that a process may enter it. Where
/// processes live nothing is taken: they would lose their limits. That it was not enough is seen when one tries to
/// enter.
pub fn disable(base: &Path) {
    for child in children(base) {
        if !is_populated(&child) {
            disable(&child);
        }
    }
    for controller in words(&base.join("cgroup.subtree_control")) {
        let _ = fs::write(base.join("cgroup.subtree_control"), format!("-{controller}"));
    }
}

/// Removes what an ended node leaves in `base`: its leaves, and the cgroup of its own pods. What somebody still lives
/// in stays, and is the next daemon's.
pub fn clear(base: &Path) {
    let pods = base.join(TOP_LEVEL);
    for pod in children(&pods) {
        for leaf in children(&pod) {
            let _ = fs::remove_dir(leaf);
        }
        let _ = fs::remove_dir(pod);
    }
    for own in [TOP_LEVEL, NODE_LEAF, DAEMON_LEAF] {
        let _ = fs::remove_dir(base.join(own));
    }
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Whether a process is in it or below it.
fn is_populated(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// Enables every wanted controller for the children of `base`; what cannot be is told, one sentence each.
pub fn enable(base: &Path) -> (Vec<String>, Vec<String>) {
    let offered = words(&base.join("cgroup.controllers"));
    let enabled = words(&base.join("cgroup.subtree_control"));
    let mut missing = Vec::new();
    for controller in WANTED.into_iter().filter(|wanted| !enabled.iter().any(|name| name == wanted)) {
        if !offered.iter().any(|name| name == controller) {
            missing.push(not_delegated(controller));
        } else if let Err(error) = fs::write(base.join("cgroup.subtree_control"), format!("+{controller}")) {
            missing.push(not_enabled(controller, base, &error));
        }
    }
    (words(&base.join("cgroup.subtree_control")), missing)
}

fn words(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

fn not_delegated(controller: &str) -> String {
    format!(
        "{}: the cgroup controller {controller} is not delegated: `cricket check` prints the command that mends it",
        what_it_limits(controller)
    )
}

fn not_enabled(controller: &str, base: &Path, error: &io::Error) -> String {
    let what = what_it_limits(controller);
    match error.raw_os_error() {
        Some(libc::EBUSY) => format!(
            "{what}: {controller} cannot be enabled while other processes are in {}: start cricket in a unit or scope of its own",
            base.display()
        ),
        _ => format!("{what}: {controller} cannot be enabled in {}: {error}", base.display()),
    }
}

/// What a machine without `controller` does not do.
pub fn what_it_limits(controller: &str) -> &'static str {
    match controller {
        "cpu" => "CPU shares and quotas are not enforced",
        "cpuset" => "CPU pinning is not enforced",
        "io" => "I/O weights are not enforced",
        "memory" => "memory limits are not enforced",
        "pids" => "limits of process counts are not enforced",
        _ => "a limit is not enforced",
    }
}

/// Of a made node, seen from inside; `base` is its path as the host sees it, under which the controllers are
/// enabled now that our processes sit in leaves.
pub fn of_made_node(base: &Path) -> Cgroups {
    let (controllers, missing) = enable(base);
    Cgroups { root: Some(PathBuf::from(MOUNT)), controllers, missing }
}

/// Of a machine or container whose root we are.
pub fn of_found_node() -> Cgroups {
    if !is_unified() {
        return without(no_unified());
    }
    let Some(base) = found_base() else {
        return without(format!("no limits can be enforced: no cgroup below {MOUNT} may be written to"));
    };
    if let Err(error) = leave(&base) {
        return without(format!(
            "no limits can be enforced: cannot move the daemon out of {}: {error}",
            base.display()
        ));
    }
    let (controllers, missing) = enable(&base);
    Cgroups { root: Some(base), controllers, missing }
}

/// The uppermost cgroup that may be divided: that of the machine or container, or what was delegated to this process.
fn found_base() -> Option<PathBuf> {
    let own = own().ok();
    let around_leaf = own.as_deref().filter(|own| own.ends_with(DAEMON_LEAF)).and_then(Path::parent);
    let top = Path::new(MOUNT);
    [Some(top), around_leaf, own.as_deref()].into_iter().flatten().find(|base| may_divide(base)).map(Path::to_owned)
}

/// Moves this process out of `base`, which is to be divided: only the root of the whole hierarchy, which the kernel
/// gives no type, may have processes of its own beside divided children.
fn leave(base: &Path) -> io::Result<()> {
    let divided_at_will = !base.join("cgroup.type").exists();
    match own() {
        Ok(own) if own == base && !divided_at_will => move_into(&base.join(DAEMON_LEAF)),
        _ => Ok(()),
    }
}

/// None.
pub fn without(reason: String) -> Cgroups {
    Cgroups { root: None, controllers: Vec::new(), missing: vec![reason] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_v2_of_a_process_is_read_from_the_line_with_zero() {
        let hybrid = "4:memory:/x\n0::/user.slice/a.scope\n";
        assert_eq!(parse_own(hybrid), Some("/sys/fs/cgroup/user.slice/a.scope".into()));
        assert_eq!(parse_own("0::/\n"), Some("/sys/fs/cgroup/".into()));
        assert_eq!(parse_own("0::/../session-1.scope\n"), None);
        assert_eq!(parse_own("4:memory:/x\n"), None);
    }
}
