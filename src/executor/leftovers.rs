//! What is to be killed when a supervisor has died without taking its pod along.
//!
//! On disk (run-time directory of the pod), each a record `{"version": 1, "pid": N, "start_ticks": N,
//! "mount_namespace": N, "cgroup": PATH or null, "pod_init": the same or null}`:
//! * `supervisor.json`: the supervisor, and PID 1 of a shared PID namespace;
//! * `containers/ID/process.json`: the first process of a container.
//!
//! `start_ticks` is field 22 of /proc/PID/stat: a process with the same id and another start is somebody else.
//! `mount_namespace` is the id of the container's mount namespace (the inode would be given to the next namespace):
//! every process that lives in it is the container's, also one that has left its parents, session and groups. It is the
//! guard where there is neither a cgroup nor a PID namespace of its own. Runs in the daemon: after it has seen a
//! supervisor go, and for each pod without one when it starts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::store::{self, RecordError};
use crate::sys::namespaces;

/// Layout of the record.
const VERSION: u32 = 1;
/// Rounds over the processes of the machine: a fork may escape one.
const ROUNDS: usize = 8;
/// Field of /proc/PID/stat, counted from the one behind the name.
const START_FIELD: usize = 19;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    version: u32,
    /// In the node's PID namespace.
    pub pid: i32,
    start_ticks: u64,
    mount_namespace: u64,
    /// Directory of its cgroup.
    pub cgroup: Option<PathBuf>,
    /// Only of a supervisor.
    #[serde(default)]
    pub pod_init: Option<Box<ProcessRecord>>,
}

impl ProcessRecord {
    /// Of a living process.
    pub fn of(pid: i32, cgroup: Option<PathBuf>) -> io::Result<Self> {
        let mount_namespace = mount_namespace(pid)?;
        Ok(Self { version: VERSION, pid, start_ticks: start_ticks(pid)?, mount_namespace, cgroup, pod_init: None })
    }

    /// Of a supervisor and PID 1 of its pod.
    pub fn of_supervisor(pid: i32, pod_init: Option<i32>) -> io::Result<Self> {
        let pod_init = pod_init.map(|pid| Self::of(pid, None)).transpose()?.map(Box::new);
        Ok(Self { pod_init, ..Self::of(pid, None)? })
    }

    /// Writes it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        store::write(path, self).map_err(|error| match &error {
            RecordError::Io { source, .. } => io::Error::new(source.kind(), error),
            _ => io::Error::other(error),
        })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        start_ticks(self.pid).is_ok_and(|ticks| ticks == self.start_ticks)
    }

    /// What names its mount namespace.
    pub fn mount_namespace(&self) -> u64 {
        self.mount_namespace
    }

    fn kill(&self) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        // Opened first, then compared: the descriptor stays with the process that was looked at.
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
        if self.is_alive() {
            let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
        }
    }
}

/// Kills whatever is left of the pod whose run-time directory this is, its supervisor included. Idempotent. Answers how
/// many containers had something left; errors of single processes are not errors: what is gone is gone.
pub fn kill(state_dir: &Path) -> Result<usize, RecordError> {
    if let Some(supervisor) = read(&state_dir.join("supervisor.json"))? {
        supervisor.kill();
        if let Some(init) = &supervisor.pod_init {
            init.kill();
        }
    }
    let Ok(entries) = fs::read_dir(state_dir.join("containers")) else { return Ok(0) };
    let mut found = 0;
    for entry in entries.flatten() {
        if let Some(record) = read(&entry.path().join("process.json"))? {
            found += usize::from(kill_container(&record));
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Option<ProcessRecord>, RecordError> {
    match store::read(path) {
        Ok(record) => Ok(Some(record)),
        Err(error) if error.is_not_found() => Ok(None),
        // Whom it named cannot be known. Of the others nobody is spared for it.
        Err(error) if error.is_damaged() => {
            tracing::error!(%error, "a process that may be left of a pod is not known any more");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn kill_container(record: &ProcessRecord) -> bool {
    if let Some(cgroup) = &record.cgroup {
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    }
    let alive = record.is_alive();
    record.kill();
    alive | (signal_namespace(record.mount_namespace, Signal::KILL) > 0)
}

/// Signals every process that lives in this mount namespace; SIGKILL in rounds, until nobody is left. Answers how many
/// it found. Zero names no namespace.
pub fn signal_namespace(mount_namespace: u64, signal: Signal) -> usize {
    let rounds = if signal == Signal::KILL { ROUNDS } else { 1 };
    let mut total = 0;
    for _ in 0..rounds {
        let members = members(mount_namespace);
        total += members.len();
        for pid in &members {
            signal_member(*pid, mount_namespace, signal);
        }
        if members.is_empty() {
            break;
        }
    }
    total
}

fn members(namespace: u64) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|&pid| namespace != 0 && mount_namespace(pid).is_ok_and(|inode| inode == namespace)).collect()
}

fn signal_member(pid: i32, namespace: u64, signal: Signal) {
    let Some(id) = Pid::from_raw(pid) else { return };
    let Ok(process) = rustix::process::pidfd_open(id, PidfdFlags::empty()) else { return };
    if mount_namespace(pid).is_ok_and(|inode| inode == namespace) {
        let _ = rustix::process::pidfd_send_signal(&process, signal);
    }
}

/// What names a process's mount namespace; an error for a zombie too.
pub fn mount_namespace(pid: i32) -> io::Result<u64> {
    namespaces::mount_namespace_id(&fs::File::open(format!("/proc/{pid}/ns/mnt"))?)
}

/// When a process was started, in ticks since boot; an error for one that has ended, zombies included.
fn start_ticks(pid: i32) -> io::Result<u64> {
    parse_start_ticks(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("process {pid} has ended")))
}

fn parse_start_ticks(stat: &str) -> Option<u64> {
    // The name may hold anything, also parentheses: the last one closes it.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(START_FIELD - 1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_read_behind_a_name_with_parentheses() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 9 9";
        assert_eq!(parse_start_ticks(stat), Some(4242));
        assert_eq!(parse_start_ticks(&stat.replace(") S", ") Z")), None);
        assert_eq!(parse_start_ticks("7"), None);
    }

    #[test]
    fn a_record_knows_its_process_and_no_other() {
        let own = ProcessRecord::of(std::process::id() as i32, None).expect("alive");
        assert!(own.is_alive());
        assert!(!ProcessRecord { start_ticks: own.start_ticks + 1, ..own.clone() }.is_alive());
        assert!(members(own.mount_namespace).contains(&own.pid));
        assert!(members(0).is_empty());
    }

    #[test]
    fn records_of_earlier_releases_are_read() {
        for path in ["supervisor.json", "process.json"].into_iter().flat_map(store::of_earlier_releases) {
            let record = read(&path).expect("read").expect("there");
            assert!(record.pid > 0 && record.mount_namespace > 0 && record.start_ticks > 0, "{record:?}");
        }
    }
}
