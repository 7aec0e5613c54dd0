//! Signals of this process: what is blocked, what is ignored, and who of the children has ended.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{WaitOptions, WaitStatus};

use super::fault::{Fault, Result};

/// Sets what a signal does.
pub fn set(signal: Signal, handler: SigHandler) -> Result<()> {
    crate::sys::signals::set_handler(signal, SigAction::new(handler, SaFlags::empty(), SigSet::empty()))
        .map_err(Fault::io(format!("cannot set the action of {signal}")))
}

/// From now on the end of a child makes the returned descriptor readable.
pub fn watch_children() -> Result<SignalFd> {
    set(Signal::SIGCHLD, SigHandler::SigDfl)?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().map_err(Fault::io("cannot block SIGCHLD"))?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(Fault::io("cannot watch for SIGCHLD"))
}

/// In a child, before it becomes somebody else's program: nothing blocked, nothing ignored. A Rust process ignores
/// SIGPIPE, the template more, and whoever started the daemon (a shell's `&`, a session's keeper) any others.
pub fn reset() -> Result<()> {
    crate::sys::signals::default_all().map_err(Fault::io("cannot reset signals"))?;
    unblock()
}

/// In a child: nothing blocked.
pub fn unblock() -> Result<()> {
    SigSet::empty().thread_set_mask().map_err(Fault::io("cannot unblock signals"))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Who.
    pub pid: i32,
    /// As a shell says it.
    pub exit_code: i32,
    /// Zero: it was not killed.
    pub signal: i32,
}

/// Collects one child that has ended, if there is one.
pub fn reap() -> Option<Ending> {
    let (pid, status) = rustix::process::wait(WaitOptions::NOHANG).ok().flatten()?;
    Some(ending(pid.as_raw_nonzero().get(), status))
}

fn ending(pid: i32, status: WaitStatus) -> Ending {
    match status.terminating_signal() {
        Some(signal) => Ending { pid, exit_code: 128 + signal, signal },
        None => Ending { pid, exit_code: status.exit_status().unwrap_or(255), signal: 0 },
    }
}

/// Sleeps until a child has ended. A child that ends between the caller's last look and this call is not missed:
/// SIGCHLD stays blocked, and thus pending, except while it is waited for.
pub fn wait_for_child() {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    let _ = mask.thread_block();
    let _ = mask.wait();
}
