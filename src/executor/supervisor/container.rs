//! One container of the pod, as its supervisor holds it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use super::connection::Requester;
use super::creation::Creation;
use super::fault::{Fault, Result};
use super::log::{ContainerLog, Stream};
use super::pod::Pod;
use super::reactor::Source;
use crate::executor::leftovers;
use crate::proto::supervisor as wire;
use crate::proto::supervisor::{ContainerPhase, NamespaceMode, event};

/// See the module.
pub struct Container {
    pub(super) id: String,
    /// STATE_DIR/containers/ID.
    pub(super) bundle: PathBuf,
    pub(super) phase: ContainerPhase,
    /// Of its first process; zero when there is none.
    pub(super) pid: i32,
    /// Inode of its mount namespace; zero while there is none.
    pub(super) mount_namespace: u64,
    pub(super) cgroup: Option<PathBuf>,
    pub(super) pid_mode: NamespaceMode,
    pub(super) oom_score_adj: i32,
    pub(super) created_at: i64,
    pub(super) started_at: i64,
    pub(super) exit: Option<wire::ContainerExit>,
    /// Our end of its standard input; a terminal's is in `terminal`.
    pub(super) stdin: Option<OwnedFd>,
    pub(super) terminal: Option<OwnedFd>,
    pub(super) log: ContainerLog,
    /// While it is being created.
    pub(super) creation: Option<Creation>,
    /// Where its first process says how its execve went; at its end the execve has succeeded.
    pub(super) start_report: Option<OwnedFd>,
    /// Why its execve failed.
    pub(super) start_fault: Option<Fault>,
    /// Who waits for the start.
    pub(super) starter: Option<Requester>,
    /// Which outputs are in epoll.
    pub(super) watched: [bool; 2],
}

impl Container {
    /// When `Pod::on_container_time` is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let creation = self.creation.as_ref().and_then(|creation| creation.deadline);
        [creation, self.log.wake_at()].into_iter().flatten().min()
    }

    /// Whether its first process lives.
    pub fn is_alive(&self) -> bool {
        matches!(self.phase, ContainerPhase::Created | ContainerPhase::Running) && self.pid > 0
    }

    /// For a new daemon.
    pub fn state(&self) -> wire::ContainerState {
        wire::ContainerState {
            container_id: self.id.clone(),
            phase: self.phase.into(),
            pid: self.pid,
            created_at: self.created_at,
            started_at: self.started_at,
            exit: self.exit.clone(),
        }
    }

    /// Its directory for the runtime's own state.
    pub fn runtime_dir(&self) -> PathBuf {
        self.bundle.join("runtime")
    }

    /// Every process of the container, by whatever holds them together here.
    pub fn signal_all(&self, signal: rustix::process::Signal) {
        use rustix::process::Signal;
        if let Some(cgroup) = &self.cgroup {
            if signal == Signal::KILL && super::cgroup::kill(cgroup).is_ok() {
                return;
            }
            for pid in super::cgroup::processes(cgroup) {
                signal_process(pid, signal);
            }
            return;
        }
        if signal == Signal::KILL && self.pid_mode == NamespaceMode::Container {
            // The kernel takes a PID namespace down with its first process.
            return signal_process(self.pid, signal);
        }
        if self.phase != ContainerPhase::Running && self.is_alive() {
            signal_process(self.pid, signal);
        }
        leftovers::signal_namespace(self.mount_namespace, signal);
    }
}

/// Signals a process that is our child and not yet waited for, or one of a cgroup of ours. That it is gone is fine.
pub fn signal_process(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid).filter(|_| pid > 0) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A signal's number as the wire has it.
pub fn signal_of(number: i32) -> Result<rustix::process::Signal> {
    rustix::process::Signal::from_named_raw(number)
        .ok_or_else(|| Fault::invalid(format!("{number} is not the number of a signal")))
}

impl Pod {
    /// The container of that id.
    pub(super) fn container(&mut self, id: &str) -> Result<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| Fault::not_found(format!("container {id}")))
    }

    /// A container's output has come.
    pub(super) fn on_output(&mut self, id: &str, stream: Stream) {
        if let Some(container) = self.containers.get_mut(id) {
            container.log.on_readable(stream, &mut self.scratch);
        }
        self.after_log(id);
    }

    /// After every call of a log's: what it wants to read, what it has to tell.
    pub(super) fn after_log(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        for (index, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            let wanted = container.log.wants_read(stream);
            if wanted == container.watched[index] {
                continue;
            }
            let source = Source::Output(id.to_owned(), index as u8);
            match container.log.source(stream) {
                Some(fd) if wanted => {
                    container.watched[index] = self.reactor.watch(fd, source).is_ok();
                }
                Some(fd) => {
                    self.reactor.forget(fd, &source);
                    container.watched[index] = false;
                }
                None => {
                    self.reactor.forget_closed(&source);
                    container.watched[index] = false;
                }
            }
        }
        if let Some(message) = container.log.take_trouble() {
            self.tell(event::Event::LogTrouble(wire::LogTrouble { container_id: id.to_owned(), message }));
        }
        self.watch_scribe();
    }

    /// Whoever it is that writes now. The socket of one that has ended is closed, and with that out of epoll.
    fn watch_scribe(&mut self) {
        let found = self.scratch.scribe().socket();
        let pid = found.as_ref().map(|(pid, _)| *pid);
        if pid == self.scribe_watched {
            return;
        }
        self.reactor.forget_closed(&Source::Scribe);
        let watched = found.is_some_and(|(_, socket)| self.reactor.watch(socket, Source::Scribe).is_ok());
        self.scribe_watched = pid.filter(|_| watched);
    }

    /// The disk has answered: whichever log waits goes on.
    pub(super) fn on_scribe(&mut self) {
        self.scratch.scribe().listen(std::time::Duration::ZERO);
        self.watch_scribe();
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            if let Some(container) = self.containers.get_mut(&id) {
                container.log.on_answer(&mut self.scratch);
            }
            self.after_log(&id);
        }
    }

    /// Takes a container's outputs out of epoll.
    pub(super) fn unwatch_output(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        for (index, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            if std::mem::take(&mut container.watched[index]) {
                let source = Source::Output(id.to_owned(), index as u8);
                match container.log.source(stream) {
                    Some(fd) => self.reactor.forget(fd, &source),
                    None => self.reactor.forget_closed(&source),
                }
            }
        }
    }
}
