//! What a daemon may ask, a line each; the work is elsewhere.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::cgroup;
use super::connection::{Answer, Requester};
use super::container::{signal_of, signal_process};
use super::fault::{Fault, Result};
use super::network;
use super::pod::Pod;
use crate::executor::protocol::{PROTOCOL_VERSION, is_compatible};
use crate::proto::supervisor as wire;
use crate::proto::supervisor::request::Op;
use crate::proto::supervisor::{ContainerPhase, ErrorKind, reply};
use crate::sys::crash::{self, Point};

/// Largest terminal side that is set.
const TERMINAL_SIDE_LIMIT: u32 = u16::MAX as u32;

impl Pod {
    /// Does what `op` asks. `None`: the answer comes later.
    pub(super) fn handle(&mut self, asker: Requester, op: Op, descriptors: Vec<OwnedFd>) -> Result<Option<Answer>> {
        match op {
            Op::Hello(hello) => self.hello(&hello).map(Some),
            Op::CreateContainer(request) => {
                let mut descriptors = descriptors;
                let volumes = descriptors.split_off(descriptors.len().min(1));
                self.create(asker, request, one(descriptors)?, volumes).map(|()| None)
            }
            Op::StartContainer(request) => self.start(asker, &request.container_id).map(|()| None),
            Op::SignalContainer(request) => self.signal_container(&request).map(done),
            Op::RemoveContainer(request) => self.remove_container(&request.container_id).map(done),
            Op::Exec(request) => self.exec(asker, request, descriptors).map(|()| None),
            Op::SignalExec(request) => self.signal_exec(&request).map(done),
            Op::ResizeTerminal(request) => self.resize(&request).map(done),
            Op::ReopenLog(request) => self.reopen_log(&request.container_id).map(done),
            Op::Attach(request) => self.attach(&request, descriptors).map(Some),
            Op::CloseStdin(request) => self.close_stdin(&request.container_id).map(done),
            Op::Connect(request) => self.dial(asker, request.port).map(|()| None),
            Op::Pause(request) => self.pause(&request).map(done),
            Op::Network(_) => network::counters().map(|reply| Some(Answer::of(reply::Result::Network(reply)))),
            Op::UserNamespace(_) => self.pass_user_namespace().map(Some),
            Op::Shutdown(request) => self.shut_down(asker, &request).map(|()| None),
        }
    }

    fn hello(&self, hello: &wire::Hello) -> Result<Answer> {
        if !is_compatible(hello.version) {
            return Err(Fault::state(format!(
                "the daemon speaks version {} and the pod's supervisor {PROTOCOL_VERSION}; stop the pod with the release \
                 that started it, {}",
                hello.version,
                env!("CARGO_PKG_VERSION")
            )));
        }
        Ok(Answer::of(reply::Result::Hello(wire::HelloReply {
            version: PROTOCOL_VERSION,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pod_id: self.spec.pod_id.clone(),
            pid: std::process::id() as i32,
            containers: self.containers.values().map(super::container::Container::state).collect(),
        })))
    }

    fn signal_container(&mut self, request: &wire::SignalContainer) -> Result<()> {
        let signal = signal_of(request.signal)?;
        let container = self.container(&request.container_id)?;
        if !container.is_alive() {
            return Ok(());
        }
        if request.all {
            container.signal_all(signal);
        } else {
            signal_process(container.pid, signal);
        }
        Ok(())
    }

    fn remove_container(&mut self, id: &str) -> Result<()> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        if container.phase != ContainerPhase::Exited {
            return Err(Fault::state(format!("container {id} has not exited; stop it first")));
        }
        container.signal_all(rustix::process::Signal::KILL);
        if let Some(directory) = &container.cgroup {
            cgroup::remove(directory).map_err(Fault::io(format!("cannot remove the cgroup of container {id}")))?;
        }
        let runtime = container.runtime_dir();
        remove_tree(&runtime).map_err(Fault::io(format!("cannot remove {}", runtime.display())))?;
        let record = container.bundle.join("process.json");
        crate::store::remove(&record).map_err(Fault::because("cannot forget the container's process"))?;
        if !container.log.is_finished() {
            eprintln!("the end of the log of container {id} could not be written and is lost with the container");
        }
        self.unwatch_output(id);
        if let Some(container) = self.containers.remove(id) {
            container.log.close(&mut self.scratch);
        }
        Ok(())
    }

    fn resize(&mut self, request: &wire::ResizeTerminal) -> Result<()> {
        let terminal = if request.exec_id.is_empty() {
            self.container(&request.container_id)?.terminal.as_ref()
        } else {
            self.execs.get(&request.exec_id).and_then(|exec| exec.terminal.as_ref())
        };
        let terminal = terminal.ok_or_else(|| Fault::state("there is no terminal to resize"))?;
        set_size(terminal, request.rows, request.columns).map_err(Fault::io("cannot resize the terminal"))
    }

    fn reopen_log(&mut self, id: &str) -> Result<()> {
        crash::reach(Point::SupervisorReopen).map_err(Fault::io("cannot open the log anew"))?;
        let container = self.containers.get_mut(id).ok_or_else(|| Fault::not_found(format!("container {id}")))?;
        let reopened = container.log.reopen(&mut self.scratch);
        self.after_log(id);
        reopened.map_err(|error| Fault::state(error.to_string()))
    }

    fn attach(&mut self, request: &wire::Attach, descriptors: Vec<OwnedFd>) -> Result<Answer> {
        let container = self.container(&request.container_id)?;
        if !container.is_alive() {
            return Err(Fault::state(format!("container {} does not run", request.container_id)));
        }
        let mut descriptors = descriptors.into_iter();
        let mut next = |wanted: bool| if wanted { descriptors.next() } else { None };
        let (stdout, stderr) = (next(request.stdout), next(request.stderr && container.terminal.is_none()));
        if stdout.is_some() != request.stdout {
            return Err(Fault::invalid("an attach to output came without its descriptor"));
        }
        let stdin = container.terminal.as_ref().or(container.stdin.as_ref()).filter(|_| request.stdin);
        let stdin =
            stdin.map(OwnedFd::try_clone).transpose().map_err(Fault::io("cannot pass the container's stdin"))?;
        if stdout.is_some() || stderr.is_some() {
            container
                .log
                .attach(stdout, stderr)
                .map_err(|error| Fault::new(ErrorKind::ResourceExhausted, error.to_string()))?;
        }
        self.after_log(&request.container_id);
        Ok(Answer { result: reply::Result::Done(wire::Done::default()), descriptors: stdin.into_iter().collect() })
    }

    fn pass_user_namespace(&self) -> Result<Answer> {
        let own = self.user_namespace.as_ref();
        let own = own.ok_or_else(|| Fault::state("the pod has no user namespace of its own"))?;
        let descriptor = own.descriptor().try_clone().map_err(Fault::io("cannot pass the user namespace"))?;
        Ok(Answer { result: reply::Result::Done(wire::Done::default()), descriptors: vec![descriptor] })
    }

    fn close_stdin(&mut self, id: &str) -> Result<()> {
        self.container(id)?.stdin = None;
        Ok(())
    }

    fn pause(&mut self, request: &wire::Pause) -> Result<()> {
        let container = self.container(&request.container_id)?;
        let Some(directory) = &container.cgroup else {
            let message = "a container can only be paused where cgroup v2 is delegated; `cricket check` says how";
            return Err(Fault::new(ErrorKind::Unimplemented, message));
        };
        cgroup::freeze(directory, request.paused)
    }
}

fn done((): ()) -> Option<Answer> {
    Some(Answer::empty())
}

fn one(descriptors: Vec<OwnedFd>) -> Result<OwnedFd> {
    let [one] = <[OwnedFd; 1]>::try_from(descriptors)
        .map_err(|all| Fault::invalid(format!("one descriptor belongs to this request, {} came", all.len())))?;
    Ok(one)
}

/// Sets the size of a terminal; zero sides (unknown) are left alone.
pub fn set_size(terminal: &OwnedFd, rows: u32, columns: u32) -> std::io::Result<()> {
    if rows == 0 && columns == 0 {
        return Ok(());
    }
    let side = |side: u32| side.min(TERMINAL_SIDE_LIMIT) as u16;
    let size = rustix::termios::Winsize { ws_row: side(rows), ws_col: side(columns), ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Removes a directory; that there is none is fine.
pub fn remove_tree(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
