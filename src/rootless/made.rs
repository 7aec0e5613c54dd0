//! A node that we make: the starting side. The other side is `holder`.
//!
//! ```text
//! serve                                     cricket node (detached, one thread)
//!   | fork, exec, a socket as its stdin  ->    |
//!   |            <- "map PID"                  | user namespace made (or "found": joined from a survivor)
//!   | newuidmap, newgidmap                     |
//!   | "mapped"                           ->    |
//!   |                                          | the other namespaces, mounts, loopback, STATE/node.json
//!   |            <- "ready" / "error WHY"      |
//!   | setns user, cgroup, mount                | waits for SIGTERM
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::record::NodeRecord;
use super::subordinate::{self, IdKind, MapLine, User};
use super::{Cgroups, Node, NodeKind, RootlessError, cgroups, seal};
use crate::sys::crash;
use crate::sys::lookout::Lookout;
use crate::sys::namespace::Namespace;
use crate::sys::process::output_within;

/// How long the node process and newuidmap may take; a loaded machine needs a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// Both are mapped.
const IDS: [IdKind; 2] = [IdKind::User, IdKind::Group];
/// Longest line of the conversation.
const LINE_LIMIT_BYTES: u64 = 4096;
/// What the node process inherits of our environment: nothing that a loader or a library obeys.
const ENVIRONMENT: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

/// See [`super::refuse_unmapped`]; a node that is there is mapped.
pub fn refuse_unmapped(state: &Path) -> Result<(), RootlessError> {
    if !NodeRecord::read(state).is_ok_and(|record| record.is_some_and(|record| record.is_live())) {
        let user = User::current();
        IDS.iter().try_for_each(|kind| subordinate::map(&user, *kind).map(drop))?;
    }
    Ok(())
}

/// Joins the node of `state`, which is made where there is none.
pub fn join(state: &Path) -> Result<Node, RootlessError> {
    let record = match NodeRecord::read(state)? {
        Some(record) if record.is_live() => record,
        _ => start(state, &[])?,
    };
    // While the host's view of the cgroups is still ours.
    let cgroups = match &record.cgroup {
        Some(base) => match move_daemon(base) {
            Ok(()) => cgroups::of_made_node(base),
            Err(reason) => cgroups::without(reason),
        },
        None => cgroups::without(cgroups::delegated_base().err().unwrap_or_else(joined_without_cgroup)),
    };
    enter_as_daemon(&record, cgroups)
}

fn joined_without_cgroup() -> String {
    "no limits can be enforced: the node was made where no cgroup was delegated: `cricket stop --pods`, then start it again"
        .to_owned()
}

fn move_daemon(base: &Path) -> Result<(), String> {
    let leaf = base.join(cgroups::DAEMON_LEAF);
    cgroups::move_into(&leaf)
        .map_err(|error| format!("no limits can be enforced: cannot move the daemon into {}: {error}", leaf.display()))
}

fn enter_as_daemon(record: &NodeRecord, cgroups: Cgroups) -> Result<Node, RootlessError> {
    let pid = record.process.pid;
    let open = |kind: Namespace| {
        kind.open(pid).map_err(RootlessError::io(format!("open the node's {} namespace", kind.name())))
    };
    let (network, uts, ipc) = (open(Namespace::Network)?, open(Namespace::Uts)?, open(Namespace::Ipc)?);
    // Where this process is in the cgroup that it stays in.
    let lookout =
        Lookout::start().inspect_err(|error| tracing::warn!(%error, "who has a taken port will not be named"));
    enter(record, &[Namespace::User, Namespace::Cgroup, Namespace::Mount])?;
    let lookout = lookout.ok().map(Arc::new);
    Ok(Node { kind: NodeKind::Made, pid, network, uts, ipc, cgroups, executable: seal()?, lookout })
}

/// Moves this process into namespaces of the node, keeping its working directory where the node shows it too.
pub fn enter(record: &NodeRecord, kinds: &[Namespace]) -> Result<(), RootlessError> {
    let directory = std::env::current_dir();
    let opened = kinds
        .iter()
        .map(|kind| Ok((kind, kind.open(record.process.pid)?)))
        .collect::<io::Result<Vec<_>>>()
        .map_err(RootlessError::io("open the node's namespaces"))?;
    // Between opening and now the number may have become another process's.
    if !record.is_live() {
        return Err(RootlessError::Node("its process ended just now; try again".into()));
    }
    for (kind, fd) in opened {
        kind.enter(fd).map_err(RootlessError::io(format!("enter the node's {} namespace", kind.name())))?;
    }
    // Entering a mount namespace leads to its root.
    if let Ok(directory) = directory {
        let _ = std::env::set_current_dir(directory);
    }
    Ok(())
}

/// Starts a node process for a node whose own has died while this daemon, which is in the node, lives; nothing is done
/// where one lives. It holds the same namespaces. The caller may have threads.
pub fn start_again(state: &Path, node: &Node) -> Result<NodeRecord, RootlessError> {
    if let Some(record) = NodeRecord::read(state)?.filter(NodeRecord::is_live) {
        return Ok(record);
    }
    let own = std::process::id();
    let held = [(Namespace::Network, &node.network), (Namespace::Uts, &node.uts), (Namespace::Ipc, &node.ipc)];
    let held = held.map(|(kind, fd)| format!("{}=/proc/{own}/fd/{}", kind.name(), fd.as_raw_fd()));
    start(state, &held)
}

/// `held` are namespaces to be joined, as `KIND=PATH`; what else survives of an old node is found by the node process.
fn start(state: &Path, held: &[String]) -> Result<NodeRecord, RootlessError> {
    let user = User::current();
    let (ours, theirs) = UnixStream::pair().map_err(RootlessError::io("make a socket pair"))?;
    let patience = ours.set_read_timeout(Some(PATIENCE));
    patience.map_err(RootlessError::io("limit the wait for the node process"))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("cricket")
        .arg("node")
        .arg("--state")
        .arg(state)
        .env_clear()
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.envs(crash::inherited());
    if let Ok(base) = cgroups::delegated_base() {
        command.arg("--cgroup").arg(base);
    }
    for namespace in held {
        command.arg("--namespace").arg(namespace);
    }
    let status = command.stdout(Stdio::null()).status().map_err(RootlessError::io("start the node process"))?;
    // Our own copy of the other end, so that the node's death is an end of file.
    drop(command);
    if !status.success() {
        return Err(RootlessError::Node(format!("the node process ended with {status}")));
    }
    converse(ours, &user)?;
    NodeRecord::read(state)?.ok_or_else(|| RootlessError::Node("it left no record".into()))
}

fn converse(ours: UnixStream, user: &User) -> Result<(), RootlessError> {
    let mut writer = ours.try_clone().map_err(RootlessError::io("speak to the node process"))?;
    let mut reader = BufReader::new(ours);
    loop {
        let mut line = String::new();
        (&mut reader)
            .take(LINE_LIMIT_BYTES)
            .read_line(&mut line)
            .map_err(RootlessError::io("hear from the node process"))?;
        match line.trim_end().split_once(' ').unwrap_or((line.trim_end(), "")) {
            ("ready", _) => return Ok(()),
            ("found", _) => {}
            ("map", pid) => {
                write_maps(pid, user)?;
                writer.write_all(b"mapped\n").map_err(RootlessError::io("speak to the node process"))?;
            }
            ("error", why) => return Err(RootlessError::Node(why.to_owned())),
            _ => return Err(RootlessError::Node("its process ended without a word".into())),
        }
    }
}

/// Maps every subordinate id of `user` into the new user namespace of the process `pid`.
pub(super) fn write_maps(pid: &str, user: &User) -> Result<(), RootlessError> {
    for kind in IDS {
        run_mapper(kind, pid, &subordinate::map(user, kind)?)?;
    }
    Ok(())
}

fn run_mapper(kind: IdKind, pid: &str, lines: &[MapLine]) -> Result<(), RootlessError> {
    let refused = |reason: String| RootlessError::Map { program: kind.mapper(), reason };
    let mut command = Command::new(kind.mapper());
    command.arg(pid);
    for line in lines {
        command.args([line.inside, line.outside, line.count].map(|number| number.to_string()));
    }
    let output = output_within(command, PATIENCE).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            refused("the program is not installed (Debian and Ubuntu: `sudo apt install uidmap`)".into())
        }
        _ => refused(error.to_string()),
    })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(refused(format!("{} ({})", String::from_utf8_lossy(&output.stderr).trim(), output.status))),
    }
}
