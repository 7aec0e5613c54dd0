//! `STATE/node.json`: which process holds the namespaces of a node that we made, and which namespaces these are.
//!
//! ```json
//! {"version": 1, "process": {"pid": 71, "start_time": 4242},
//!  "namespaces": {"user": 4026532281, "mount": 4026532282, ...}, "cgroup": "/sys/fs/cgroup/user.slice/.../x.service"}
//! ```

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::store::{self, RecordError};
use crate::sys::namespace::Namespace;
use crate::sys::process::{ProcessId, all_pids};

const FILE: &str = "node.json";
const VERSION: u32 = 1;
/// Of the node process; see `holder`.
const NAME: &str = "cricket-node";

/// See the module's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    version: u32,
    /// The node process.
    pub process: ProcessId,
    /// Inodes of the node's namespaces.
    pub namespaces: BTreeMap<Namespace, u64>,
    /// The cgroup that was delegated to us, as the host sees it; the node's cgroup namespace begins there.
    pub cgroup: Option<PathBuf>,
}

impl NodeRecord {
    /// Of this process and its namespaces.
    pub fn own(cgroup: Option<PathBuf>) -> io::Result<Self> {
        Self::of(ProcessId::own()?.pid, cgroup)
    }

    /// What stands in `state`; none where no node was made. A damaged record is written anew from the node process that
    /// was started with this `state`, and set aside where there is none.
    pub fn read(state: &Path) -> Result<Option<Self>, RecordError> {
        let path = state.join(FILE);
        let damage = match store::read_known::<Self>(&path, VERSION) {
            Ok(record) => return Ok(Some(record)),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if error.is_damaged() => error,
            Err(error) => return Err(error),
        };
        let found = node_processes(state).into_iter().find_map(|(pid, cgroup)| Self::of(pid, cgroup).ok());
        match &found {
            Some(record) => {
                record.write(state)?;
                tracing::warn!("{damage}: it is written anew, of the node process {}", record.process.pid);
            }
            None => {
                let place = store::set_aside(&path)?;
                tracing::warn!("{damage}: no node process runs here, and it is set aside as {}", place.display());
            }
        }
        Ok(found)
    }

    fn of(pid: i32, cgroup: Option<PathBuf>) -> io::Result<Self> {
        let process = ProcessId::of(pid)?;
        let namespaces = Namespace::ALL.into_iter().map(|kind| Ok((kind, kind.inode_of(pid)?)));
        Ok(Self { version: VERSION, process, namespaces: namespaces.collect::<io::Result<_>>()?, cgroup })
    }

    /// Writes it to `state`.
    pub fn write(&self, state: &Path) -> Result<(), RecordError> {
        store::write(&state.join(FILE), self)
    }

    /// Removes the record of `state`.
    pub fn remove(state: &Path) -> Result<(), RecordError> {
        store::remove(&state.join(FILE))
    }

    /// Whether the node process lives and holds what the record says.
    pub fn is_live(&self) -> bool {
        let user = Namespace::User;
        self.process.is_alive() && user.inode_of(self.process.pid).ok().as_ref() == self.namespaces.get(&user)
    }

    /// Processes, other than this one, in the node's user namespace.
    pub fn members(&self) -> io::Result<Vec<ProcessId>> {
        let Some(wanted) = self.namespaces.get(&Namespace::User) else { return Ok(Vec::new()) };
        let own = std::process::id() as i32;
        Ok(all_pids()?
            .filter(|pid| *pid != own && Namespace::User.inode_of(*pid).is_ok_and(|found| found == *wanted))
            .filter_map(|pid| ProcessId::of(pid).ok())
            .collect())
    }

    /// Where those of the node's namespaces can be opened that a process is in still; for a node whose own process
    /// is gone.
    pub fn survivors(&self) -> io::Result<BTreeMap<Namespace, PathBuf>> {
        let mut found = BTreeMap::new();
        for member in self.members()? {
            for (kind, wanted) in &self.namespaces {
                if kind.inode_of(member.pid).is_ok_and(|inode| inode == *wanted) {
                    found.entry(*kind).or_insert_with(|| kind.path_of(member.pid));
                }
            }
        }
        Ok(found)
    }
}

/// Processes of this user that were started as `cricket node --state STATE`, with the cgroup that they were given.
fn node_processes(state: &Path) -> Vec<(i32, Option<PathBuf>)> {
    let own = std::process::id() as i32;
    let pids = all_pids().into_iter().flatten().filter(|pid| *pid != own);
    pids.filter_map(|pid| {
        let is_node = std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == NAME);
        let line = is_node.then(|| std::fs::read(format!("/proc/{pid}/cmdline")).ok()).flatten()?;
        let words: Vec<&OsStr> = line.split(|byte| *byte == 0).map(OsStr::from_bytes).collect();
        let after = |flag: &str| words.windows(2).find(|pair| pair[0] == flag).map(|pair| PathBuf::from(pair[1]));
        (after("--state")? == state).then(|| (pid, after("--cgroup")))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_earlier_releases_are_read() {
        for path in store::of_earlier_releases(FILE) {
            let record = NodeRecord::read(path.parent().expect("a directory")).expect("read").expect("there");
            assert!(record.process.pid > 0 && record.cgroup.is_none(), "{record:?}");
        }
    }
}
