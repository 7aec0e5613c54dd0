//! CPU time of the daemon and of everything that came from it, exact to what the kernel counts.
//!
//! No cgroup is needed: this process is the subreaper of the daemon, so that every process of the node is a
//! descendant of it for as long as it lives, and the CPU time of every one that has ended is in its parent's figures
//! in the end:
//! * of living processes, the clock of the process (nanoseconds, all threads, also ended ones), and the time of the
//!   children that it waited for (`cutime` and `cstime` of /proc/PID/stat, in hundredths of a second);
//! * of processes that ended as our children, `getrusage(RUSAGE_CHILDREN)`, which has their children in it.
//!
//! Hundredths are coarse, and the template, whose children supervisors are, ignores how they end, so that their time
//! would be lost. Therefore a stage that measures whole lives kills the daemon when its pods are up and starts another
//! (`Node::restart`): the template ends with its daemon, supervisors become our children, and when they end their time
//! and that of all their children is in our figures to the microsecond. What the start of the other daemon costs is
//! taken off. Our own process is not counted.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::ClockId;
use nix::unistd::Pid;

/// How long ended processes may take to be waited for by their parents.
const SETTLE: Duration = Duration::from_secs(2);
/// How often is looked.
const GLANCE: Duration = Duration::from_millis(2);
/// Of `cutime`, by the kernel's promise to user space.
const TICK: Duration = Duration::from_millis(10);

/// Makes us the parent of the daemon's orphans.
pub fn adopt_orphans() -> anyhow::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("becoming the subreaper")
}

/// Whose CPU time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `cricket serve`.
    Daemon,
    /// The process that supervisors are forked from, and those that it waited for.
    Template,
    /// Supervisors themselves.
    Supervisor,
    /// Children of supervisors that have ended: creators, containers, exec'd processes.
    Children,
    /// Processes that live: containers, the node's process.
    Other,
}

/// CPU time until a moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    by_kind: HashMap<Kind, Duration>,
    /// Of processes that have ended as our children.
    ended: Duration,
}

impl Sample {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.by_kind.values().sum::<Duration>() + self.ended
    }

    /// Of one kind, while its processes live.
    pub fn of(&self, kind: Kind) -> Duration {
        self.by_kind.get(&kind).copied().unwrap_or_default()
    }

    /// What our own program costs: no container, no child.
    pub fn of_ourselves(&self) -> Duration {
        [Kind::Daemon, Kind::Template, Kind::Supervisor].map(|kind| self.of(kind)).iter().sum()
    }
}

/// A process as /proc/PID/stat shows it.
#[derive(Debug)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    state: char,
    waited_for: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Account {
    daemon: i32,
}

impl Account {
    /// Of the daemon and what comes from it.
    pub fn new(daemon: i32) -> Self {
        Self { daemon }
    }

    /// After the daemon was started again. Answers what that has cost so far.
    pub fn follow(&mut self, daemon: i32) -> anyhow::Result<Duration> {
        self.daemon = daemon;
        let sample = self.sample()?;
        Ok(sample.of(Kind::Daemon) + sample.of(Kind::Template))
    }

    /// The CPU time until now, after processes that have ended were waited for.
    pub fn sample(&self) -> anyhow::Result<Sample> {
        let started = Instant::now();
        loop {
            reap();
            let processes = descendants()?;
            let pending = processes.iter().any(|process| process.state == 'Z');
            if !pending || started.elapsed() > SETTLE {
                return self.add_up(&processes);
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// The supervisors that live.
    pub fn supervisors(&self) -> anyhow::Result<Vec<i32>> {
        let all = descendants()?;
        Ok(all.iter().filter(|process| self.kind(process) == Kind::Supervisor).map(|process| process.pid).collect())
    }

    /// The template, while it lives.
    pub fn template(&self) -> anyhow::Result<Option<i32>> {
        let all = descendants()?;
        Ok(all.iter().find(|process| self.kind(process) == Kind::Template).map(|process| process.pid))
    }

    fn add_up(&self, processes: &[Process]) -> anyhow::Result<Sample> {
        let mut sample = Sample::default();
        for process in processes {
            let kind = self.kind(process);
            *sample.by_kind.entry(kind).or_default() += own_time(process.pid).unwrap_or_default();
            let of_children = if kind == Kind::Supervisor { Kind::Children } else { kind };
            *sample.by_kind.entry(of_children).or_default() += process.waited_for;
        }
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        sample.ended = Duration::from_micros(microseconds.unsigned_abs());
        Ok(sample)
    }

    fn kind(&self, process: &Process) -> Kind {
        if process.pid == self.daemon {
            return Kind::Daemon;
        }
        let command = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        match command.split(|byte| *byte == 0).nth(1) {
            Some(b"supervise") if process.parent == self.daemon => Kind::Template,
            // Its children bear the command line that they were forked with until they execute something else.
            Some(b"supervise") if self.is_supervisors_parent(process.parent) => Kind::Supervisor,
            _ => Kind::Other,
        }
    }

    fn is_supervisors_parent(&self, pid: i32) -> bool {
        pid == own_pid() || read_process(pid).is_some_and(|parent| parent.parent == self.daemon)
    }
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

/// Waits for every child that has ended, the daemon too.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}

fn own_time(pid: i32) -> nix::Result<Duration> {
    let now = ClockId::pid_cpu_clock_id(Pid::from_raw(pid))?.now()?;
    Ok(Duration::from(now))
}

/// Every process that has us among its ancestors.
fn descendants() -> anyhow::Result<Vec<Process>> {
    let mut by_parent: HashMap<i32, Vec<Process>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").context("reading /proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(process) = pid.and_then(read_process) {
            by_parent.entry(process.parent).or_default().push(process);
        }
    }
    let mut found = by_parent.remove(&own_pid()).unwrap_or_default();
    let mut at = 0;
    while let Some(process) = found.get(at) {
        let children = by_parent.remove(&process.pid).unwrap_or_default();
        found.extend(children);
        at += 1;
    }
    Ok(found)
}

fn read_process(pid: i32) -> Option<Process> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may contain anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u32>().ok();
    Some(Process {
        pid,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        // Fields 16 and 17 of the file.
        waited_for: TICK * (ticks(13)? + ticks(14)?),
    })
}
