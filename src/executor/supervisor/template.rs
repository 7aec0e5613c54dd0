//! `cricket supervise`: the process from which supervisors are forked, so that they share its pages and cost no exec.
//!
//! It is a child of the daemon, already inside the node's namespaces, with one thread and a clean environment, and does
//! nothing but fork. A supervisor answers for itself, once its namespaces are made. The template ends when the daemon
//! does; supervisors, in sessions of their own, go on. Children are not waited for: SIGCHLD is ignored here.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigHandler, Signal};
use rustix::fs::{Mode, OFlags};

use super::fault::{Fault, Result};
use super::sandbox::{self, Birth};
use super::{cgroup, signals};
use crate::executor::protocol::{self, MESSAGE_LIMIT, ProtocolError};
use crate::proto::supervisor as wire;
use crate::sys::crash::{self, Point};
use crate::sys::{descriptors, environment, fork};

/// The mode bits that new files lack.
const UMASK: Mode = Mode::from_raw_mode(0o022);
/// Environment that may be passed on: how much a panic tells. Nothing that a loader or a library reads.
const ENVIRONMENT: &[&str] = &["RUST_BACKTRACE"];

/// Serves spawn requests from the descriptor `socket` until its other end closes.
pub fn main(socket: RawFd) -> Result<()> {
    prepare(socket)?;
    let socket = descriptors::inherited(socket).map_err(Fault::io("cannot use the template's socket"))?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
        .map_err(Fault::io("cannot mark the template's socket"))?;
    loop {
        // A buffer of this size comes from the kernel and goes back to it: the heap that supervisors copy stays small.
        let mut buffer = vec![0; MESSAGE_LIMIT];
        match protocol::receive::<wire::SpawnRequest>(&socket, &mut buffer) {
            Ok(received) => spawn(&socket, received)?,
            Err(ProtocolError::Closed) => return Ok(()),
            Err(error) => return Err(Fault::because("the template's socket failed")(error)),
        }
    }
}

fn prepare(socket: RawFd) -> Result<()> {
    assert_one_thread()?;
    descriptors::close_all_except(&[socket]).map_err(Fault::io("cannot close stray descriptors"))?;
    open_standard_streams()?;
    let _ = crash::inherited();
    environment::keep_only(ENVIRONMENT);
    rustix::process::umask(UMASK);
    rustix::process::chdir("/").map_err(Fault::io("cannot change to /"))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(Fault::io("cannot become non-dumpable"))?;
    // Not for a terminal's keys: the template ends with its socket.
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGPIPE, Signal::SIGXFSZ] {
        signals::set(signal, SigHandler::SigIgn)?;
    }
    let _ = rustix::thread::set_name(c"cricket-template");
    Ok(())
}

/// Whoever forks here forks with one thread (see `sys::fork`).
pub fn assert_one_thread() -> Result<()> {
    match fork::thread_count().map_err(Fault::io("cannot count the threads of this process"))? {
        1 => Ok(()),
        count => Err(Fault::state(format!("a supervisor has one thread, this process has {count}"))),
    }
}

/// Descriptors 0 to 2 are taken, so that no other descriptor ever gets such a number.
fn open_standard_streams() -> Result<()> {
    loop {
        let null: OwnedFd =
            rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).map_err(Fault::io("cannot open /dev/null"))?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        // Stays open as a standard stream for the life of the process.
        std::mem::forget(null);
    }
}

fn spawn(socket: &OwnedFd, received: protocol::Received<wire::SpawnRequest>) -> Result<()> {
    let (request, [listener]) = match received.expect::<1>() {
        Ok(parts) => parts,
        Err(error) => return refuse(socket, 0, Fault::invalid(error.to_string())),
    };
    let id = request.id;
    let Some(spec) = request.sandbox else {
        return refuse(socket, id, Fault::invalid("a spawn request without a sandbox"));
    };
    let cgroup = match cgroup::of_supervisor(&spec.cgroup) {
        Ok(cgroup) => cgroup,
        Err(fault) => return refuse(socket, id, fault),
    };
    let reply = match socket.try_clone() {
        Ok(reply) => reply,
        Err(error) => return refuse(socket, id, Fault::io("cannot duplicate a descriptor")(error)),
    };
    if let Err(error) = crash::reach(Point::TemplateFork) {
        return refuse(socket, id, Fault::fork("cannot fork a supervisor")(error));
    }
    let birth = Birth { request: id, spec, listener, reply };
    match fork::fork_and_run(cgroup.as_ref().map(AsFd::as_fd), || sandbox::live(birth)) {
        Ok(_) => Ok(()),
        Err(error) => refuse(socket, id, Fault::fork("cannot fork a supervisor")(error)),
    }
}

fn refuse(socket: &OwnedFd, id: u64, fault: Fault) -> Result<()> {
    let reply = wire::SpawnReply { id, pid: 0, error: Some(fault.into()) };
    protocol::send(socket, &reply, &[]).map_err(Fault::because("cannot answer the daemon"))
}
