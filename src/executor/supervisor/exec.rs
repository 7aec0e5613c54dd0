//! Further processes in a container: the supervisor's side. What the new process does to get in is in `joining.rs`.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::ThreadNameSpaceType;

use super::cgroup;
use super::connection::{Answer, Requester};
use super::container::{signal_of, signal_process};
use super::fault::{Fault, Result};
use super::joining::{self, Entry};
use super::pod::{Pod, now};
use super::reactor::Source;
use super::signals::Ending;
use crate::executor::protocol::{self, ProtocolError};
use crate::proto::supervisor as wire;
use crate::proto::supervisor::{ErrorKind, NamespaceMode, event, reply};
use crate::sys::crash::{self, Point};
use crate::sys::fork;

/// Exec'd processes that a pod may have at a time.
const EXECS_LIMIT: usize = 1024;
/// Field of /proc/PID/stat that holds the session, counted from the one behind the name.
const SESSION_FIELD: usize = 3;

/// One exec'd process.
pub struct Exec {
    pub(super) pid: i32,
    /// Who waits for it to run; none once it does.
    asker: Option<Requester>,
    report: Option<OwnedFd>,
    /// Kept for resizing; the session's own copy went out with the answer.
    pub(super) terminal: Option<OwnedFd>,
    fault: Option<Fault>,
}

impl Pod {
    /// Begins an exec; the answer comes when its program runs.
    pub(super) fn exec(&mut self, asker: Requester, request: wire::Exec, stdio: Vec<OwnedFd>) -> Result<()> {
        if request.exec_id.is_empty() || self.execs.contains_key(&request.exec_id) {
            return Err(Fault::invalid(format!("{:?} is not a new exec id", request.exec_id)));
        }
        if self.execs.len() >= EXECS_LIMIT {
            return Err(Fault::new(ErrorKind::ResourceExhausted, "too many processes are exec'd in the pod"));
        }
        let stdio = match (request.tty, <[OwnedFd; 3]>::try_from(stdio)) {
            (false, Ok(stdio)) => Some(stdio),
            (true, Err(none)) if none.is_empty() => None,
            _ => return Err(Fault::invalid("an exec has three descriptors without a terminal and none with one")),
        };
        crash::reach(Point::SupervisorExec).map_err(Fault::io("cannot begin a command"))?;
        let container = self.containers.get(&request.container_id);
        let container = container.ok_or_else(|| Fault::not_found(format!("container {}", request.container_id)))?;
        let target = Pid::from_raw(container.pid).filter(|_| container.is_alive());
        let target = target.ok_or_else(|| Fault::state(format!("container {} does not run", container.id)))?;
        let target = rustix::process::pidfd_open(target, PidfdFlags::empty())
            .map_err(Fault::io("cannot open the container's process"))?;
        let (report, theirs) = protocol::pair().map_err(Fault::io("cannot make a socket pair"))?;
        let cgroup = container.cgroup.as_deref().map(cgroup::open).transpose()?;
        let entry = Entry {
            request: &request,
            bundle: &container.bundle,
            target: &target,
            stdio: stdio.as_ref(),
            report: &theirs,
            oom_score_adj: container.oom_score_adj,
            user_namespace: self.user_namespace.as_ref(),
        };
        // Nobody in a user namespace may enter the PID namespace in which he is.
        let is_here = container.pid_mode == NamespaceMode::Node;
        let enter = |helper| {
            if !is_here {
                rustix::thread::move_into_thread_name_spaces(target.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
            }
            Ok(joining::prepare(&entry, helper))
        };
        let pid = fork::fork_elsewhere(cgroup.as_ref().map(AsFd::as_fd), enter, |ready| joining::enter(&entry, ready))
            .map_err(|error| not_forked(&container.id, error))?;
        let id = request.exec_id;
        let _ = rustix::io::ioctl_fionbio(&report, true);
        let watched = self.reactor.watch(&report, Source::ExecReport(id.clone()));
        watched
            .inspect_err(|_| signal_process(pid, Signal::KILL))
            .map_err(Fault::io("cannot watch the exec's report"))?;
        let exec = Exec { pid, asker: Some(asker), report: Some(report), terminal: None, fault: None };
        self.execs.insert(id, exec);
        Ok(())
    }

    /// A process on its way in has sent something, or runs its program.
    pub(super) fn on_exec_report(&mut self, id: &str) {
        loop {
            let Some(exec) = self.execs.get_mut(id) else { return };
            let Some(report) = &exec.report else { return };
            match protocol::receive::<wire::FromSupervisor>(report, self.scratch.message()) {
                Ok(received) => self.take_exec_report(id, received),
                Err(ProtocolError::NotReady) => return,
                Err(_) => return self.settle_exec(id),
            }
        }
    }

    /// See `joining::Report` for what comes.
    fn take_exec_report(&mut self, id: &str, received: protocol::Received<wire::FromSupervisor>) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        let descriptor = received.descriptors.into_iter().next();
        match joining::Report::read(&received.message) {
            Some(joining::Report::Terminal) => exec.terminal = descriptor,
            Some(joining::Report::Failed(fault)) => exec.fault = Some(fault),
            None => {}
        }
    }

    fn settle_exec(&mut self, id: &str) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        if let Some(report) = exec.report.take() {
            self.reactor.forget(&report, &Source::ExecReport(id.to_owned()));
        }
        let Some(asker) = exec.asker.take() else { return };
        let outcome = match (&exec.fault, exec.terminal.as_ref().map(OwnedFd::try_clone).transpose()) {
            (Some(fault), _) => Err(fault.clone()),
            (None, Ok(terminal)) => {
                let result = reply::Result::Exec(wire::ExecReply { pid: exec.pid });
                Ok(Answer { result, descriptors: terminal.into_iter().collect() })
            }
            (None, Err(error)) => Err(Fault::io("cannot pass the terminal")(error)),
        };
        self.answer(asker, outcome);
    }

    /// An exec'd process has ended.
    pub(super) fn exec_ended(&mut self, id: &str, ending: Ending) {
        self.on_exec_report(id);
        self.settle_exec(id);
        let Some(exec) = self.execs.remove(id) else { return };
        if exec.fault.is_some() {
            // It never ran its program: the answer has said so.
            return;
        }
        self.tell(event::Event::ExecExited(wire::ExecExit {
            exec_id: id.to_owned(),
            exit_code: ending.exit_code,
            signal: ending.signal,
            finished_at: now(),
        }));
    }

    /// Signals an exec'd process and everything in the session that it leads.
    pub(super) fn signal_exec(&mut self, request: &wire::SignalExec) -> Result<()> {
        let signal = signal_of(request.signal)?;
        let exec = self.execs.get(&request.exec_id);
        let exec = exec.ok_or_else(|| Fault::not_found(format!("exec {}", request.exec_id)))?;
        // The leader first, or it would see its children die. Its number stays its own until it is waited for.
        signal_process(exec.pid, signal);
        for pid in session_members(exec.pid) {
            signal_process(pid, signal);
        }
        Ok(())
    }
}

/// A PID namespace whose first process is ending takes no other, which the kernel calls a lack of memory.
fn not_forked(id: &str, error: std::io::Error) -> Fault {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOMEM) => {
            Fault::state(format!("container {id} takes no process: it is ending ({error})"))
        }
        _ => Fault::fork(format!("cannot fork into the PID namespace of container {id}"))(error),
    }
}

/// Processes other than the leader. One that ends while it is looked at leaves its number to be used by somebody else
/// only after the kernel has gone round all numbers.
fn session_members(leader: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|&pid| pid != leader && session_of(pid) == Some(leader)).collect()
}

fn session_of(pid: i32) -> Option<i32> {
    let stat = rustix::fs::open(format!("/proc/{pid}/stat"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut buffer = [0u8; 512];
    let length = rustix::io::read(&stat, &mut buffer[..]).ok()?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().nth(SESSION_FIELD)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_session_of_a_process_is_read() {
        // One that leads a session of its own: this process's may belong to a pid namespace further out.
        let mut child = Command::new("setsid")
            .args(["sh", "-c", "echo; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        child.stdout.as_mut().expect("its output").read_exact(&mut [0]).expect("a sign of life");
        let pid = child.id() as i32;
        assert_eq!(session_of(pid), Some(pid));
        assert_eq!(session_of(-1), None);
        drop(child.stdin.take());
        child.wait().expect("its end");
    }
}
