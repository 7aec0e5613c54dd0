//! Processes of others: identity that survives the reuse of a pid, and ending them with a deadline.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process, told from a later one with the same number by the time at which it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number in this PID namespace.
    pub pid: i32,
    /// In clock ticks since the machine's boot.
    pub start_time: u64,
}

impl ProcessId {
    /// Of this process.
    pub fn own() -> io::Result<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// Of the process that has the number `pid` now.
    pub fn of(pid: i32) -> io::Result<Self> {
        match stat(pid)? {
            ('Z' | 'X', _) => Err(io::Error::from(io::ErrorKind::NotFound)),
            (_, start_time) => Ok(Self { pid, start_time }),
        }
    }

    /// Of a child of ours that nobody has waited for, and a descriptor that is this process for ever; also when it has
    /// ended at once.
    pub fn of_child(child: &Child) -> io::Result<(Self, OwnedFd)> {
        let pid = child.id() as i32;
        let fd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let (_, start_time) = stat(pid)?;
        Ok((Self { pid, start_time }, fd))
    }

    /// Whether it runs still (a zombie does not).
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// A descriptor that is this process for ever; none when it is gone.
    pub fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // The number may have been taken by another process before the descriptor was opened.
            Ok(fd) => Ok(self.is_alive().then_some(fd)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks it to end (SIGTERM) and makes it end (SIGKILL) when it has not after `patience`. Returns whether it was
    /// there; when this returns without an error it is gone.
    pub fn end(&self, patience: Duration) -> io::Result<bool> {
        let Some(fd) = self.open()? else { return Ok(false) };
        for (signal, patience) in [(Signal::TERM, patience), (Signal::KILL, KILL_PATIENCE)] {
            match pidfd_send_signal(&fd, signal) {
                Ok(()) => {}
                Err(rustix::io::Errno::SRCH) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
            if wait_until_readable(&fd, patience)? {
                return Ok(true);
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {} did not end when it was killed", self.pid)))
    }
}

/// As [`ProcessId::end`], for many at once and within one patience for all. Returns how many were there.
pub fn end_all(processes: &[ProcessId], patience: Duration) -> io::Result<usize> {
    let mut there = Vec::new();
    for process in processes {
        there.extend(process.open()?);
    }
    let count = there.len();
    for (signal, patience) in [(Signal::TERM, patience), (Signal::KILL, KILL_PATIENCE)] {
        let deadline = Instant::now() + patience;
        for fd in &there {
            // A process that has just gone refuses the signal, and its descriptor is readable at once.
            let _ = pidfd_send_signal(fd, signal);
        }
        let mut left = Vec::new();
        for fd in there {
            if !wait_until_readable(&fd, deadline.saturating_duration_since(Instant::now()))? {
                left.push(fd);
            }
        }
        there = left;
    }
    match there.len() {
        0 => Ok(count),
        left => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("{left} processes did not end when they were killed")))
        }
    }
}

/// A killed process that is still there after this long hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Waits until `fd` can be read (a pidfd: until the process has ended).
pub fn wait_until_readable(fd: impl AsFd, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: i64::from(rest.subsec_nanos()) };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if deadline <= Instant::now() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs `command` to its end and returns what it printed; kills it after `patience`. For programs that print less
/// than a pipe holds (64 KiB).
pub fn output_within(mut command: Command, patience: Duration) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let ended = ProcessId::of(child.id() as i32).map_or(Ok(true), |id| match id.open()? {
        Some(fd) => wait_until_readable(&fd, patience),
        None => Ok(true),
    });
    if !matches!(ended, Ok(true)) {
        child.kill()?;
        child.wait()?;
        let name = command.get_program().display().to_string();
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{name} did not end within {patience:?}")));
    }
    child.wait_with_output()
}

/// The numbers of all processes that /proc shows.
pub fn all_pids() -> io::Result<impl Iterator<Item = i32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// `nginx (pid 71)`: the process that has the socket open, among those that this one may look into.
pub fn with_socket(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    all_pids().ok()?.find_map(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let has =
            |entry: fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str());
        descriptors.flatten().any(has).then(|| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{} (pid {pid})", name.trim())
        })
    })
}

fn stat(pid: i32) -> io::Result<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&stat)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is malformed")))
}

/// Processes of this user, in the PID namespace that /proc shows, by their command lines: those of which `tell` has
/// something to say when it sees the name of the program and its arguments. What runs in a pod calls itself what it
/// likes, and has a namespace of its own.
pub fn by_command_line<T>(tell: impl Fn(&[&OsStr]) -> Option<T>) -> io::Result<Vec<(ProcessId, T)>> {
    let user = rustix::process::geteuid().as_raw();
    let found = all_pids()?.filter_map(|pid| {
        let ours = fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == user);
        let line = ours.then(|| fs::read(format!("/proc/{pid}/cmdline")).ok()).flatten()?;
        let words: Vec<&OsStr> = line.strip_suffix(&[0])?.split(|byte| *byte == 0).map(OsStr::from_bytes).collect();
        let told = tell(&words).filter(|_| is_in_this_namespace(pid))?;
        Some((ProcessId::of(pid).ok()?, told))
    });
    Ok(found.collect())
}

/// proc_pid_status(5): NSpid has a number for each namespace from that of /proc inwards.
fn is_in_this_namespace(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_whitespace().count() == 1)
}

/// State and start time of a line of /proc/PID/stat; the name, which may hold anything, is skipped.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    // proc_pid_stat(5): state is field 3, starttime field 22.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_confuse_the_stat_line() {
        let line = "7 (a) S (b) R 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(parse_stat(line), Some(('R', 4242)));
        assert_eq!(parse_stat("7 (sh"), None);
        assert_eq!(parse_stat("7 (sh) S 1 2"), None);
    }

    #[test]
    fn this_process_is_alive_and_one_with_another_start_time_is_not() {
        let own = ProcessId::own().expect("read");
        assert!(own.is_alive());
        let other = ProcessId { start_time: own.start_time + 1, ..own };
        assert!(!other.is_alive());
        assert!(other.open().expect("opened").is_none());
    }

    #[test]
    fn a_process_is_found_by_its_command_line() {
        let own = fs::read("/proc/self/cmdline").expect("a command line");
        let own: Vec<&[u8]> = own.strip_suffix(&[0]).expect("whole").split(|byte| *byte == 0).collect();
        let is_own = |words: &[&OsStr]| words.iter().map(|word| word.as_bytes()).eq(own.iter().copied());
        let found = by_command_line(|words| is_own(words).then_some(())).expect("looked for");
        assert!(found.contains(&(ProcessId::own().expect("read"), ())));
        assert!(by_command_line(|words| words.is_empty().then_some(())).expect("looked for").is_empty());
    }

    #[test]
    fn a_process_that_ignores_sigterm_is_killed() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "trap '' TERM; echo; while :; do read x || sleep 9; done"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = [0u8; 1];
        std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut line).expect("ready");
        let id = ProcessId::of(child.id() as i32).expect("read");
        assert!(id.end(Duration::from_millis(50)).expect("ended"));
        assert!(!id.is_alive());
        let (dead, fd) = ProcessId::of_child(&child).expect("nobody has waited for it");
        assert!(dead == id && wait_until_readable(&fd, Duration::ZERO).expect("looked at"));
        child.wait().expect("reaped");
    }
}
