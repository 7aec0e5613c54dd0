//! Processes without exec: clone of a single-threaded process, straight into a cgroup where one is given.
//!
//! The raw `clone3` is used because it can place the child into its cgroup without the migration that a write to
//! `cgroup.procs` costs. Callers have one thread; that is checked, for a lock held by another thread would hang the
//! child.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Which side of a fork one is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one, with the new one's id in this PID namespace.
    Parent(i32),
}

/// Ends a child when it leaves its scope, also by a panic's unwinding, without running what the parent registered.
struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        exit_now(CHILD_FAILED);
    }
}

/// Exit code of a child that panicked.
const CHILD_FAILED: i32 = 70;

/// CLONE_INTO_CGROUP of linux/sched.h (the constant of the libc crate is too narrow for it).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Threads of this process, as the kernel counts them.
pub fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// See [`fork`]. A `sibling` is a child of this process's own parent.
fn clone_process(cgroup: Option<BorrowedFd<'_>>, sibling: bool) -> io::Result<Forked> {
    let mut arguments = libc::clone_args {
        flags: 0,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    if sibling {
        // The exit signal is then this process's own.
        arguments.flags |= libc::CLONE_PARENT as u64;
        arguments.exit_signal = 0;
    }
    // SAFETY: no memory is shared (no CLONE_VM), so the child goes on with a copy of everything, as after fork(2);
    // the callers are single-threaded, so no lock is held by a thread that the child does not have.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid as i32)),
    }
}

/// Clones this process. `cgroup` is an open directory of cgroup v2 for the child to be born in.
pub fn fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    clone_process(cgroup, false)
}

/// Forks, runs `body` in the child and ends the child with the code that it returns.
pub fn fork_and_run(cgroup: Option<BorrowedFd<'_>>, body: impl FnOnce() -> i32) -> io::Result<i32> {
    match fork(cgroup)? {
        Forked::Parent(pid) => Ok(pid),
        Forked::Child => {
            let _guard = ExitOnDrop;
            exit_now(body())
        }
    }
}

/// Forks a child of this process into another PID namespace and runs `body` there. `enter` makes that namespace the one
/// of later children; it runs in a helper between the two, for in a user namespace who has once changed it cannot come
/// back. Whoever is in that namespace already sees the child from its first moment, and the helper never: what must not
/// be seen is done by `enter`, whose answer `body` gets. The descriptor that `enter` is told of has to stay open. The
/// helper is a child too, to be waited for, and has ended when this returns. Answers the child's id here.
pub fn fork_elsewhere<T>(
    cgroup: Option<BorrowedFd<'_>>,
    enter: impl FnOnce(RawFd) -> io::Result<T>,
    body: impl FnOnce(T) -> i32,
) -> io::Result<i32> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // The child is born where the helper is: no descriptor of the cgroup has to live until then.
    fork_and_run(cgroup, || {
        let entered = enter(writer.as_raw_fd());
        let forked = entered.and_then(|prepared| Ok((clone_process(None, true)?, prepared)));
        let outcome = match forked {
            Ok((Forked::Child, prepared)) => return body(prepared),
            Ok((Forked::Parent(pid), _)) => pid,
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        i32::from(rustix::io::write(&writer, &outcome.to_ne_bytes()).is_err())
    })?;
    drop(writer);
    let mut outcome = [0; 4];
    match rustix::io::retry_on_intr(|| rustix::io::read(&reader, &mut outcome))? {
        4 => match i32::from_ne_bytes(outcome) {
            pid @ 1.. => Ok(pid),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        },
        _ => Err(io::Error::other("the process between the two PID namespaces was killed")),
    }
}

/// Ends this process at once, without exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no precondition and does not return.
    unsafe { libc::_exit(code) }
}
