//! Namespaces: opening, telling them apart, entering, making.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

/// Kinds of namespaces that make up a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// Ids and capabilities.
    User,
    /// Mounts.
    Mount,
    /// What /proc/self/cgroup calls `/`.
    Cgroup,
    /// Interfaces, addresses, routes, ports, abstract sockets.
    Network,
    /// Host name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
}

impl Namespace {
    /// All of a node, in the order in which they are entered: the user namespace first, for it gives the
    /// capabilities that the others ask for; the mount namespace last, for paths change with it.
    pub const ALL: [Self; 6] = [Self::User, Self::Cgroup, Self::Network, Self::Uts, Self::Ipc, Self::Mount];

    /// The name below /proc/PID/ns.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Cgroup => "cgroup",
            Self::Network => "net",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
        }
    }

    fn flag(self) -> CloneFlags {
        match self {
            Self::User => CloneFlags::CLONE_NEWUSER,
            Self::Mount => CloneFlags::CLONE_NEWNS,
            Self::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            Self::Network => CloneFlags::CLONE_NEWNET,
            Self::Uts => CloneFlags::CLONE_NEWUTS,
            Self::Ipc => CloneFlags::CLONE_NEWIPC,
        }
    }

    /// The kind with this name below /proc/PID/ns.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Where the namespace of the process `pid` is opened.
    pub fn path_of(self, pid: i32) -> PathBuf {
        PathBuf::from(format!("/proc/{pid}/ns/{}", self.name()))
    }

    /// The namespace of the process `pid`.
    pub fn open(self, pid: i32) -> io::Result<OwnedFd> {
        Ok(File::open(self.path_of(pid))?.into())
    }

    /// The namespace of this process.
    pub fn open_own(self) -> io::Result<OwnedFd> {
        Ok(File::open(format!("/proc/self/ns/{}", self.name()))?.into())
    }

    /// What tells the namespace of the process `pid` from all others alive now.
    pub fn inode_of(self, pid: i32) -> io::Result<u64> {
        Ok(std::fs::metadata(self.path_of(pid))?.ino())
    }

    /// Moves this process, which must have one thread, into the namespace.
    pub fn enter(self, fd: impl AsFd) -> io::Result<()> {
        Ok(setns(fd.as_fd(), self.flag())?)
    }

    /// Moves this process, which must have one thread, into a new namespace.
    pub fn make(self) -> io::Result<()> {
        Ok(unshare(self.flag())?)
    }
}

/// What tells an open namespace from all others alive now.
pub fn inode(fd: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_ino)
}
