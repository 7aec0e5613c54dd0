//! A user namespace of the pod's own (`hostUsers: false`), and the network, IPC and UTS namespaces that belong to it.
//!
//! The supervisor stays in the node's user namespace, where its files, cgroups and the daemon's mounts are its own, and
//! lives in the other namespaces of the pod. They are made by a child of a moment:
//!
//! ```text
//! supervisor ── fork ──> child: unshare(user) ── "made" ──> supervisor writes its ids
//!     │                  child becomes root there, unshare(net, ipc, uts), sysctls  <── "mapped" ──┘
//!     └── opens and joins what the child has made  <── "ready", or a fault; then the child ends
//! ```
//!
//! The supervisor holds the namespace by descriptor: containers, execs and the pod's first process join it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::fs::{Gid, Uid};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use super::fault::{Fault, Result};
use super::{sandbox, sysctl};
use crate::proto::supervisor::{IdMap, NamespaceMode, SandboxSpec};
use crate::sys::namespace::Namespace;
use crate::sys::owners::IdRange;
use crate::sys::{descriptors, fork, namespaces};

/// What the two say to each other when all is well; anything else is the text of a fault.
const WELL: &str = "\n";
/// Longest fault of the child.
const ANSWER_LIMIT_BYTES: u64 = 4096;

/// See the module.
pub struct UserNamespace {
    descriptor: OwnedFd,
    ids: IdRange,
}

impl UserNamespace {
    /// Makes what `spec` asks for, and moves this process into all of it but the user namespace. `None`: it asks for
    /// none.
    pub fn of(spec: &SandboxSpec) -> Result<Option<Self>> {
        if spec.uid_maps.is_empty() && spec.gid_maps.is_empty() {
            return Ok(None);
        }
        let ids = one_range(&spec.uid_maps, &spec.gid_maps)?;
        let failed = "cannot make the pod's user namespace";
        let (mut ours, theirs) = UnixStream::pair().map_err(Fault::io(failed))?;
        let pid = fork::fork_and_run(None, || i32::from(make(spec, &theirs).is_err())).map_err(Fault::fork(failed))?;
        drop(theirs);
        let taken = take(spec, pid, ids, &mut ours);
        end(pid);
        Ok(Some(Self { descriptor: taken?, ids }))
    }

    /// To be passed, or kept over a fork.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Its ids around it.
    pub fn ids(&self) -> IdRange {
        self.ids
    }

    /// For who opens it in this process or in a fork of it.
    pub fn path(&self) -> PathBuf {
        descriptors::path(&self.descriptor)
    }

    /// What a user and a group of the namespace are here.
    pub fn outside(&self, uid: u32, gid: u32) -> Result<(Uid, Gid)> {
        match (self.ids.outside(uid), self.ids.outside(gid)) {
            (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
            _ => Err(Fault::invalid(format!(
                "the user {uid} with group {gid} is not in the pod's user namespace, which has {} ids",
                self.ids.length
            ))),
        }
    }

    /// Moves this process into it, as its root with every capability there.
    pub fn enter(&self) -> io::Result<()> {
        Namespace::User.enter(&self.descriptor)?;
        become_root()
    }
}

fn one_range(users: &[IdMap], groups: &[IdMap]) -> Result<IdRange> {
    match (users, groups) {
        ([line], [other]) if line == other && line.container_id == 0 && line.length > 0 => {
            Ok(IdRange { first: line.host_id, length: line.length })
        }
        _ => Err(Fault::invalid("a pod's user namespace has one range of ids, the same for users and groups")),
    }
}

fn become_root() -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    Ok(rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?)
}

/// The child.
fn make(spec: &SandboxSpec, socket: &UnixStream) -> Result<()> {
    let outcome = make_namespaces(spec, socket);
    let text = outcome.as_ref().err().map_or(WELL, |fault| fault.message.as_str());
    let mut socket = socket;
    let _ = socket.write_all(text.as_bytes());
    let _ = socket.shutdown(std::net::Shutdown::Write);
    // Until the supervisor has what it wants.
    let _ = socket.read(&mut [0]);
    outcome
}

fn make_namespaces(spec: &SandboxSpec, mut socket: &UnixStream) -> Result<()> {
    let talk = "cannot speak to the supervisor";
    let most = "cannot make the pod's user namespace; is /proc/sys/user/max_user_namespaces reached?";
    namespaces::unshare(UnshareFlags::NEWUSER).map_err(Fault::io(most))?;
    socket.write_all(WELL.as_bytes()).map_err(Fault::io(talk))?;
    socket.read_exact(&mut [0; WELL.len()]).map_err(Fault::io(talk))?;
    become_root().map_err(Fault::io("cannot become root of the pod's user namespace"))?;
    namespaces::unshare(sandbox::shared_namespaces(spec)).map_err(Fault::io("cannot make the pod's namespaces"))?;
    sysctl::apply(spec)
}

/// The supervisor's half.
fn take(spec: &SandboxSpec, pid: i32, ids: IdRange, child: &mut UnixStream) -> Result<OwnedFd> {
    let talk = "cannot speak to the process that makes the pod's user namespace";
    let mut first = [0; WELL.len()];
    child.read_exact(&mut first).map_err(Fault::io(talk))?;
    if first == *WELL.as_bytes() {
        write_map(pid, "uid_map", ids)?;
        write_map(pid, "gid_map", ids)?;
        child.write_all(WELL.as_bytes()).map_err(Fault::io(talk))?;
        first = [0; WELL.len()];
    }
    let mut answer = String::new();
    child.take(ANSWER_LIMIT_BYTES).read_to_string(&mut answer).map_err(Fault::io(talk))?;
    if answer != WELL {
        let begun = String::from_utf8_lossy(&first).trim_matches('\0').to_owned();
        return Err(Fault::state(format!("{begun}{answer}")));
    }
    join(spec, pid).map_err(Fault::io("cannot join the pod's namespaces"))?;
    Namespace::User.open(pid).map_err(Fault::io("cannot hold the pod's user namespace"))
}

fn write_map(pid: i32, name: &str, ids: IdRange) -> Result<()> {
    let IdRange { first, length } = ids;
    fs::read_to_string(format!("/proc/self/{name}"))
        .and_then(|own| fs::write(format!("/proc/{pid}/{name}"), map(ids, &own)))
        .map_err(Fault::io(format!("cannot give {length} ids from {first} on to the pod's user namespace ({name})")))
}

/// `ids` as a map, for who has the map `own`: the kernel takes no line that spans two of those.
fn map(ids: IdRange, own: &str) -> String {
    let (begin, end) = (u64::from(ids.first), u64::from(ids.first) + u64::from(ids.length));
    let mut lines = String::new();
    for line in own.lines() {
        let numbers: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [first, _, count] = numbers[..] else { continue };
        let (from, to) = (begin.max(first), end.min(first + count));
        if from < to {
            lines += &format!("{} {from} {}\n", from - begin, to - from);
        }
    }
    lines
}

fn join(spec: &SandboxSpec, pid: i32) -> io::Result<()> {
    let wanted = [
        (Namespace::Network, spec.network() != NamespaceMode::Node),
        (Namespace::Ipc, spec.ipc() != NamespaceMode::Node),
        (Namespace::Uts, !spec.hostname.is_empty()),
    ];
    for (namespace, _) in wanted.into_iter().filter(|(_, wanted)| *wanted) {
        namespace.enter(namespace.open(pid)?.as_fd())?;
    }
    Ok(())
}

/// It has said all that it had to say; errors mean that it is gone.
fn end(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_cut_where_the_nodes_own_is() {
        let ids = IdRange { first: 65536, length: 65536 };
        let whole = "         0          0 4294967295\n";
        assert_eq!(map(ids, whole), "0 65536 65536\n");
        let node = "0 1500 1\n1 100000 65536\n65537 300000 131072\n";
        assert_eq!(map(ids, node), "0 65536 1\n1 65537 65535\n");
        assert_eq!(map(IdRange { first: 0, length: 2 }, node), "0 0 1\n1 1 1\n");
        assert_eq!(map(ids, "0 1500 1\n"), "");
    }
}
