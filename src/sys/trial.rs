//! Things tried in a child, so that what they change or break is gone with it; and leaving a starter behind.
//!
//! For processes of one thread (see [`super::fork`]).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::fork::{Forked, exit_now, fork, thread_count};

/// Most that a child says.
const ANSWER_LIMIT_BYTES: u64 = 64 << 10;

fn assert_one_thread() -> io::Result<()> {
    match thread_count()? {
        1 => Ok(()),
        n => Err(io::Error::other(format!("this process has {n} threads and may not fork; this is a defect"))),
    }
}

/// Makes this process an orphan in a session of its own: the starter reaps the process that it started, and need not
/// know of this one; a terminal's signals do not reach it. Returns in the new process only; the old one exits with 0.
pub fn detach() -> io::Result<()> {
    assert_one_thread()?;
    if fork(None)? != Forked::Child {
        exit_now(0);
    }
    nix::unistd::setsid()?;
    Ok(())
}

/// Runs `work` in a child, which may change namespaces or ids as it likes, and returns what it answered. `attend` runs
/// meanwhile in this process with the child's id and a socket to it (the child's end is the argument of `work`). A
/// child that does not answer within `patience` is killed, and so is one that has answered.
pub fn in_child(
    patience: Duration,
    work: impl FnOnce(&mut UnixStream) -> String,
    attend: impl FnOnce(i32, &mut UnixStream) -> io::Result<()>,
) -> io::Result<String> {
    assert_one_thread()?;
    let (mut ours, mut theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(patience))?;
    match fork(None)? {
        Forked::Child => {
            drop(ours);
            let answer = work(&mut theirs);
            let written = theirs.write_all(answer.as_bytes());
            exit_now(i32::from(written.is_err()))
        }
        Forked::Parent(child) => {
            drop(theirs);
            let result = attend(child, &mut ours).and_then(|()| hear(&mut ours));
            end(Pid::from_raw(child));
            result
        }
    }
}

/// Has the kernel make a user namespace, for a child that does nothing and ends. The only trial here that a process of
/// several threads may make.
pub fn user_namespace() -> io::Result<()> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and without a stack this is fork(2) into a new user namespace; the arguments after the
    // flags are not looked at. The child calls nothing but _exit, which is safe whatever locks other threads held.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    match child {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: _exit touches no memory of ours and does not return.
        0 => unsafe { libc::_exit(0) },
        child => {
            // An error means that it is gone already.
            let _ = waitpid(Pid::from_raw(i32::try_from(child).map_err(io::Error::other)?), None);
            Ok(())
        }
    }
}

fn hear(socket: &mut UnixStream) -> io::Result<String> {
    let mut answer = String::new();
    socket.take(ANSWER_LIMIT_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}

fn end(child: Pid) {
    // It has answered (then it is leaving) or it failed to (then it has to go); errors mean that it is gone.
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
}
