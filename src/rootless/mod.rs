//! The node: the user, mount, cgroup, UTS, IPC and network namespaces that all pods share.
//!
//! Three ways to start, one code path (ARCHITECTURE.md): made by us for an ordinary user, found (uid 0 of someone
//! else's user namespace), or the host's own (real root).

pub mod cgroups;
mod holder;
mod keeper;
mod made;
pub mod probe;
mod record;
pub mod subordinate;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use holder::{Places, hold};
pub use keeper::keep;
pub use made::{enter, start_again};
pub use record::NodeRecord;

use crate::config::Config;
use crate::store::RecordError;
use crate::sys::lookout::Lookout;
use crate::sys::namespace::Namespace;
use crate::sys::{descriptors, directory, fork, loopback, sealed};

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

impl NodeKind {
    /// What a daemon that is started by this process will have. Wrong in a process that has joined a node.
    pub fn here() -> io::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Made);
        }
        let map = std::fs::read_to_string("/proc/self/uid_map")?;
        Ok(if is_initial(&map) { Self::Root } else { Self::Found })
    }
}

/// Whether a map is that of the machine's first user namespace: every id is itself.
fn is_initial(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
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
    /// Our binary as nobody can write it, for the template; see [`sealed`].
    pub executable: OwnedFd,
    /// In a made node: a process of the host's user namespace.
    pub lookout: Option<Arc<Lookout>>,
}

impl Node {
    /// The path by which a child of this process executes the sealed binary.
    pub fn executable_path(&self) -> PathBuf {
        sealed::path(&self.executable)
    }
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

/// The node could not be made or joined.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    /// Subordinate ids.
    #[error(transparent)]
    Subordinate(#[from] subordinate::SubordinateError),
    /// newuidmap or newgidmap.
    #[error("{program} refused to map the subordinate ids: {reason}; `cricket check` says what is missing")]
    Map {
        /// Which.
        program: &'static str,
        /// What it said.
        reason: String,
    },
    /// The node process told that it cannot.
    #[error("the node cannot be made: {0}; `cricket check` says what is missing")]
    Node(String),
    /// The record of the node.
    #[error("{0}; what the node is cannot be known without it: end its `cricket node` process, then remove the record")]
    Record(#[from] RecordError),
    /// There is no node to enter.
    #[error("no cricket node runs with the state directory {0}: start one with `cricket serve`, or give --state")]
    NoNode(PathBuf),
    /// A system call.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl RootlessError {
    fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

/// Refuses a user without subordinate ids before anything is made.
pub fn refuse_unmapped(config: &Config) -> Result<(), RootlessError> {
    match NodeKind::here().map_err(RootlessError::io("read /proc/self/uid_map"))? {
        NodeKind::Made => made::refuse_unmapped(&config.state),
        NodeKind::Found | NodeKind::Root => Ok(()),
    }
}

/// Finds or makes the node and joins it. To be called once, by a process of one thread, after which paths are those
/// of the node's mount namespace (which shows the same files).
pub fn join(config: &Config) -> Result<Node, RootlessError> {
    match fork::thread_count() {
        Ok(1) => {}
        Ok(n) => return Err(RootlessError::Node(format!("this process has {n} threads; this is a defect"))),
        Err(error) => return Err(RootlessError::io("count the threads")(error)),
    }
    descriptors::close_all_on_exec().map_err(RootlessError::io("close inherited descriptors on exec"))?;
    make_private(&config.state)?;
    make_private(&config.root)?;
    match NodeKind::here().map_err(RootlessError::io("read /proc/self/uid_map"))? {
        NodeKind::Made => made::join(&config.state),
        kind => found(kind),
    }
}

fn make_private(path: &Path) -> Result<(), RootlessError> {
    directory::make_private(path).map_err(RootlessError::io(format!("use the directory {}", path.display())))
}

fn found(kind: NodeKind) -> Result<Node, RootlessError> {
    // A network namespace of the moment (`unshare --net`) has it down. Where it is not ours to change, whoever needs it
    // says what is wrong.
    let _ = loopback::up();
    let own = |namespace: Namespace| {
        namespace.open_own().map_err(RootlessError::io(format!("open our {} namespace", namespace.name())))
    };
    Ok(Node {
        kind,
        pid: std::process::id() as i32,
        network: own(Namespace::Network)?,
        uts: own(Namespace::Uts)?,
        ipc: own(Namespace::Ipc)?,
        cgroups: cgroups::of_found_node(),
        executable: seal()?,
        lookout: None,
    })
}

fn seal() -> Result<OwnedFd, RootlessError> {
    sealed::seal().map_err(RootlessError::io("seal our own binary"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_map_of_every_id_to_itself_is_the_machines_own() {
        assert!(is_initial("         0          0 4294967295\n"));
        for other in ["0 1500 1\n1 100000 65536\n", "0 100000 65536\n", "", "0 0 4294967294\n"] {
            assert!(!is_initial(other), "{other:?}");
        }
    }
}
