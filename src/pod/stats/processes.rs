//! The substitute where there is no cgroup of a container: the processes themselves, from /proc.
//!
//! A [`Snapshot`] is one pass over the machine's processes and serves whoever asks within [`LIFETIME`]. Below a
//! supervisor every process is its pod's. Below a container's first process all are the container's; what else is in
//! the pod (execs, processes whose parents have ended) is told apart by mount namespace.
//!
//! What it is worth: time of processes that the supervisor has waited for (execs that have ended) is not in it.
//! Resident memory is the sum of anonymous pages and the largest share of mapped files, so a page that several
//! processes share after a fork counts for each. The page cache, swap and pressure are unknown.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::pod::stats::reading::{Cpu, Memory, Reading};

/// How long one pass over /proc is good for.
const LIFETIME: Duration = Duration::from_millis(500);
/// Most processes of the machine that are looked at.
const PROCESSES_LIMIT: usize = 65_536;
/// Longest line of /proc/PID/stat.
const LINE_LIMIT_BYTES: usize = 1024;
/// Fields of /proc/PID/stat (proc_pid_stat(5)), counted from 0 behind the name.
mod field {
    pub(super) const PARENT: usize = 1;
    pub(super) const FAULTS: [usize; 2] = [7, 8];
    pub(super) const MAJOR_FAULTS: [usize; 2] = [9, 10];
    pub(super) const USER: [usize; 2] = [11, 13];
    pub(super) const SYSTEM: [usize; 2] = [12, 14];
    pub(super) const THREADS: usize = 17;
    pub(super) const COUNT: usize = 18;
}

/// One process; its time and faults have those of its children that ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Process {
    parent: i32,
    user_ticks: u64,
    system_ticks: u64,
    faults: u64,
    major_faults: u64,
    threads: u64,
}

/// The processes of the machine at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    at: i64,
    processes: HashMap<i32, Process>,
    children: HashMap<i32, Vec<i32>>,
}

/// What a pod's processes use.
#[derive(Debug, Default)]
pub(crate) struct PodReadings {
    /// All of it, the supervisor included; none: it is not there.
    pub(crate) pod: Option<Reading>,
    /// In the order of what was asked for, with its processes; none: its first process is not there.
    pub(crate) containers: Vec<Option<(Reading, Vec<i32>)>>,
}

/// The last snapshot, and whoever may ask for it.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    last: Mutex<Option<(Instant, Arc<Snapshot>)>>,
}

impl Processes {
    /// At most [`LIFETIME`] old. Blocking.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        // Held while it is made, so that many who ask at once cost one pass.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((taken, snapshot)) = last.as_ref().filter(|(taken, _)| taken.elapsed() < LIFETIME) {
            let _ = taken;
            return Arc::clone(snapshot);
        }
        let snapshot = Arc::new(Snapshot::take());
        *last = Some((Instant::now(), Arc::clone(&snapshot)));
        snapshot
    }
}

impl Snapshot {
    fn take() -> Self {
        let mut snapshot = Self { at: crate::pod::events::now(), ..Default::default() };
        let Ok(entries) = fs::read_dir("/proc") else { return snapshot };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let mut line = [0; LINE_LIMIT_BYTES];
        for pid in pids.take(PROCESSES_LIMIT) {
            // One that has ended meanwhile uses nothing.
            let Some(process) = read_line(pid, &mut line).and_then(parse) else { continue };
            snapshot.insert(pid, process);
        }
        snapshot
    }

    fn insert(&mut self, pid: i32, process: Process) {
        self.processes.insert(pid, process);
        self.children.entry(process.parent).or_default().push(pid);
    }

    /// `root` and everything below it; empty when it is not there.
    fn below(&self, root: i32) -> Vec<i32> {
        if !self.processes.contains_key(&root) {
            return Vec::new();
        }
        let mut found = vec![root];
        let mut next = 0;
        while let Some(pid) = found.get(next) {
            found.extend(self.children.get(pid).into_iter().flatten());
            next += 1;
        }
        found
    }

    /// The processes of each container (by their first processes), and of the whole pod.
    pub(crate) fn divide(&self, supervisor: i32, firsts: &[i32]) -> (Vec<i32>, Vec<Vec<i32>>) {
        let pod = self.below(supervisor);
        let mut containers: Vec<Vec<i32>> =
            firsts.iter().map(|first| if pod.contains(first) { self.below(*first) } else { Vec::new() }).collect();
        let inside: std::collections::HashSet<i32> = containers.iter().flatten().copied().collect();
        let loose: Vec<i32> = pod.iter().copied().filter(|pid| *pid != supervisor && !inside.contains(pid)).collect();
        if !loose.is_empty() {
            let spaces: Vec<Option<PathBuf>> = firsts.iter().map(|first| mount_namespace(*first)).collect();
            for pid in loose {
                let Some(space) = mount_namespace(pid) else { continue };
                if let Some(at) = spaces.iter().position(|known| known.as_ref() == Some(&space)) {
                    containers[at].push(pid);
                }
            }
        }
        (pod, containers)
    }

    /// Of a pod and its containers.
    pub(crate) fn pod(&self, supervisor: i32, firsts: &[i32]) -> PodReadings {
        let (pod, containers) = self.divide(supervisor, firsts);
        let inside: std::collections::HashSet<i32> = containers.iter().flatten().copied().collect();
        let own: Vec<i32> = pod.into_iter().filter(|pid| !inside.contains(pid)).collect();
        let mut all = (!own.is_empty()).then(|| self.sum(&own));
        let containers: Vec<_> =
            containers.into_iter().map(|pids| (!pids.is_empty()).then(|| (self.sum(&pids), pids))).collect();
        if let Some(all) = &mut all {
            containers.iter().flatten().for_each(|(reading, _)| all.add(reading));
        }
        PodReadings { pod: all, containers }
    }

    fn sum(&self, pids: &[i32]) -> Reading {
        let processes = pids.iter().filter_map(|pid| self.processes.get(pid));
        let total = processes.fold(Process::default(), |sum, one| Process {
            parent: 0,
            user_ticks: sum.user_ticks + one.user_ticks,
            system_ticks: sum.system_ticks + one.system_ticks,
            faults: sum.faults + one.faults,
            major_faults: sum.major_faults + one.major_faults,
            threads: sum.threads + one.threads,
        });
        let tick = tick_nanoseconds();
        let (user, system) = (total.user_ticks * tick, total.system_ticks * tick);
        Reading {
            at: self.at,
            cpu: Cpu { usage: Some(user + system), user: Some(user), system: Some(system), ..Default::default() },
            memory: Memory { faults: Some(total.faults), major_faults: Some(total.major_faults), ..memory(pids) },
            processes: Some(pids.len() as u64),
            threads: Some(total.threads),
            ..Default::default()
        }
    }
}

fn tick_nanoseconds() -> u64 {
    const NANOSECONDS_OF_SECOND: u64 = 1_000_000_000;
    NANOSECONDS_OF_SECOND / rustix::param::clock_ticks_per_second().max(1)
}

/// Names the mount namespace of a process while it lives.
fn mount_namespace(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

/// What can be said of the memory of these processes without a controller that counts it.
pub(crate) fn memory(pids: &[i32]) -> Memory {
    let (mut anonymous, mut files) = (0, 0);
    for (own, mapped) in pids.iter().filter_map(|pid| resident(*pid)) {
        anonymous += own;
        files = files.max(mapped);
    }
    Memory { working_set: Some(anonymous + files), anonymous: Some(anonymous), ..Default::default() }
}

/// Bytes of its own and of mapped files.
fn resident(pid: i32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = text.split_ascii_whitespace().skip(1).map(|n| n.parse::<u64>().unwrap_or_default());
    let (resident, shared) = (pages.next()?, pages.next()?);
    let page = rustix::param::page_size() as u64;
    Some((resident.saturating_sub(shared) * page, shared * page))
}

fn read_line(pid: i32, line: &mut [u8]) -> Option<&str> {
    let mut file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let count = file.read(line).ok()?;
    // The name may hold any bytes; what counts is behind it.
    let end = line[..count].iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(&line[end + 1..count]).ok()
}

/// What is behind the name in /proc/PID/stat.
fn parse(text: &str) -> Option<Process> {
    let fields: Vec<&str> = text.split_ascii_whitespace().take(field::COUNT).collect();
    // Of children that ended the kernel counts with a sign.
    let number = |at: usize| fields.get(at).and_then(|f| f.parse::<i64>().ok()).map(|n| n.max(0) as u64);
    let both = |at: [usize; 2]| Some(number(at[0])?.saturating_add(number(at[1])?));
    Some(Process {
        parent: fields.get(field::PARENT)?.parse().ok()?,
        user_ticks: both(field::USER)?,
        system_ticks: both(field::SYSTEM)?,
        faults: both(field::FAULTS)?,
        major_faults: both(field::MAJOR_FAULTS)?,
        threads: number(field::THREADS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_what_its_children_used() {
        let text = " S 7 1 1 0 -1 4194560 10 20 1 2 300 400 50 60 20 0 4 0 99 1000 5";
        let expected =
            Process { parent: 7, user_ticks: 350, system_ticks: 460, faults: 30, major_faults: 3, threads: 4 };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse(" S 7"), None);
    }

    #[test]
    fn what_is_below_a_first_process_is_its_containers() {
        let mut snapshot = Snapshot::default();
        // No process of the machine has such numbers, so none has a mount namespace.
        let base = i32::MAX - 100;
        for (pid, parent) in [(1, 0), (2, 1), (3, 2), (4, 1), (5, 4), (9, 0)] {
            snapshot.insert(base + pid, Process { parent: base + parent, user_ticks: 1, ..Default::default() });
        }
        let (pod, containers) = snapshot.divide(base + 1, &[base + 2, base + 9]);
        assert_eq!(pod.len(), 5);
        assert_eq!(containers, [vec![base + 2, base + 3], Vec::new()]);
        let readings = snapshot.pod(base + 1, &[base + 2, base + 9]);
        let counted = readings.containers[0].as_ref().and_then(|(reading, _)| reading.processes);
        assert_eq!((readings.pod.and_then(|pod| pod.processes), counted), (Some(5), Some(2)));
        assert!(readings.containers[1].is_none());
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        let processes = Processes::default();
        let own = std::process::id() as i32;
        let reading = processes.snapshot().sum(&[own]);
        assert!(reading.memory.anonymous > Some(0) && reading.memory.working_set > reading.memory.anonymous);
        assert!(reading.threads > Some(0) && reading.processes == Some(1));
        assert!(Arc::ptr_eq(&processes.snapshot(), &processes.snapshot()), "one pass serves many");
    }
}
