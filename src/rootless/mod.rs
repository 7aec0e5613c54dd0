//! The node: the user, mount, cgroup, UTS, IPC and network namespaces that all pods share.
//!
//! Three ways to start, one code path (ARCHITECTURE.md): made by us for an ordinary user, found (uid 0 of someone
//! else's user namespace), or the host's own (real root).

use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Where the node's namespaces come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// Made by `cricket node` for an ordinary user.
    Made,
    /// uid 0 of a user namespace that someone else made (kind, usernetes, rootlesskit).
    Found,
    /// Real root of the machine.
    Root,
}

/// The node, joined by this process: its user and mount namespace are the node's. In a made node the daemon's
/// network namespace stays the host's; `network` is the node's.
#[derive(Debug)]
pub struct Node {
    /// Where it comes from.
    pub kind: NodeKind,
    /// A process that holds the namespaces: the node process, or this one where cricket made none.
    pub pid: i32,
    /// The node's network, UTS, IPC and cgroup namespaces, to be joined by the template before it forks supervisors.
    pub network: OwnedFd,
    /// See `network`.
    pub uts: OwnedFd,
    /// See `network`.
    pub ipc: OwnedFd,
    /// What of cgroup v2 is ours.
    pub cgroups: Cgroups,
}

/// What of cgroup v2 the node may use.
#[derive(Debug, Clone, Default)]
pub struct Cgroups {
    /// The directory (below /sys/fs/cgroup, as the node sees it) under which pods' cgroups are made; none where
    /// there is no cgroup v2 that we may write to: containers then run without limits, and `missing` says so.
    pub root: Option<PathBuf>,
    /// Controllers that can be enabled for children.
    pub controllers: Vec<String>,
    /// What cannot be enforced and why, one sentence each, for check, Status and the log.
    pub missing: Vec<String>,
}
