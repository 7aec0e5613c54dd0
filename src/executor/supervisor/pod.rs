//! The pod's state and the loop that drives it. Everything happens between two waits, one thing after the other;
//! nothing in here waits for a container, a client or a daemon.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signalfd::SignalFd;

use super::connection::Connection;
use super::container::Container;
use super::dial::Dial;
use super::exec::Exec;
use super::fault::{Fault, Result};
use super::log::{Scratch, Stream};
use super::reactor::{Reactor, Ready, Source};
use super::shutdown::Shutdown;
use super::signals::Ending;
use super::user_namespace::UserNamespace;
use crate::proto::supervisor::SandboxSpec;

/// A supervisor's all.
pub struct Pod {
    pub(super) spec: SandboxSpec,
    pub(super) state_dir: PathBuf,
    pub(super) record_dir: PathBuf,
    /// This very process, for children to see whether it lives.
    pub(super) own: OwnedFd,
    /// The pod's own.
    pub(super) user_namespace: Option<UserNamespace>,
    /// PID 1 of a shared PID namespace.
    pub(super) init: Option<i32>,
    pub(super) reactor: Reactor,
    pub(super) listener: OwnedFd,
    pub(super) children: SignalFd,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) next_connection: u64,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) execs: BTreeMap<String, Exec>,
    pub(super) dials: BTreeMap<u64, Dial>,
    pub(super) next_dial: u64,
    /// Children that ended before it was known whose they were.
    pub(super) strays: VecDeque<Ending>,
    pub(super) scratch: Scratch,
    pub(super) shutdown: Option<Shutdown>,
    /// The scribe whose answers are watched for.
    pub(super) scribe_watched: Option<i32>,
}

/// Nanoseconds since the Unix epoch.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

impl Pod {
    /// An empty pod that listens.
    pub fn new(
        spec: SandboxSpec,
        state_dir: PathBuf,
        record_dir: PathBuf,
        listener: OwnedFd,
        children: SignalFd,
        own: OwnedFd,
        init: Option<i32>,
    ) -> Result<Self> {
        let mut reactor = Reactor::new().map_err(Fault::io("cannot make an epoll descriptor"))?;
        rustix::io::ioctl_fionbio(&listener, true).map_err(Fault::io("cannot use the pod's socket"))?;
        reactor.watch(&listener, Source::Listener).map_err(Fault::io("cannot watch the pod's socket"))?;
        reactor.watch(&children, Source::Signals).map_err(Fault::io("cannot watch for children"))?;
        let scratch = Scratch::with_scribe().map_err(Fault::io("cannot reserve memory"))?;
        Ok(Self {
            spec,
            state_dir,
            record_dir,
            own,
            user_namespace: None,
            init,
            reactor,
            listener,
            children,
            connections: BTreeMap::new(),
            next_connection: 1,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            dials: BTreeMap::new(),
            next_dial: 1,
            strays: VecDeque::new(),
            scratch,
            shutdown: None,
            scribe_watched: None,
        })
    }

    /// Until the pod is shut down. Answers the exit code.
    pub fn run(mut self) -> i32 {
        loop {
            match self.reactor.wait(self.deadline()) {
                Ok(ready) => ready.into_iter().for_each(|ready| self.dispatch(ready)),
                Err(error) => {
                    eprintln!("epoll failed, the pod ends: {error}");
                    return 1;
                }
            }
            self.on_time();
            if self.shutdown.as_ref().is_some_and(Shutdown::is_over) {
                return self.leave();
            }
        }
    }

    fn dispatch(&mut self, ready: Ready) {
        match &ready.source {
            Source::Listener => self.accept(),
            Source::Signals => self.on_children(),
            Source::Connection(id) => self.on_connection(*id, &ready),
            Source::Output(container, stream) => {
                let stream = if *stream == 0 { Stream::Stdout } else { Stream::Stderr };
                self.on_output(container, stream);
            }
            Source::StartReport(container) => self.on_start_report(container),
            Source::ExecReport(exec) => self.on_exec_report(exec),
            Source::Dial(id) => self.on_dial(*id),
            Source::Scribe => self.on_scribe(),
        }
    }

    /// The earliest time at which something is to be done without anybody asking.
    fn deadline(&self) -> Option<Instant> {
        let containers = self.containers.values().filter_map(Container::deadline);
        let dials = self.dials.values().map(|dial| dial.deadline);
        let others = [self.scratch.give_back_at(), self.shutdown.as_ref().and_then(Shutdown::deadline)];
        containers.chain(dials).chain(others.into_iter().flatten()).min()
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if self.scratch.give_back_at().is_some_and(|at| at <= now) {
            self.scratch.give_back();
        }
        let due: Vec<String> = self
            .containers
            .iter()
            .filter(|(_, c)| c.deadline().is_some_and(|at| at <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.on_container_time(&id, now);
        }
        self.expire_dials(now);
        self.on_shutdown_time(now);
    }

    fn on_container_time(&mut self, id: &str, now: Instant) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.log.wake_at().is_some_and(|at| at <= now) {
            container.log.on_wake(&mut self.scratch);
        }
        self.after_log(id);
        self.expire_creation(id, now);
    }
}
