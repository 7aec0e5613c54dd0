//! Forking, for programs of one thread: a daemon's double fork, and probes whose failure must be harmless.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

/// Most that a child says.
const ANSWER_LIMIT_BYTES: u64 = 64 << 10;

/// Threads of this process.
pub fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

fn assert_single_threaded() -> io::Result<()> {
    match thread_count()? {
        1 => Ok(()),
        n => Err(io::Error::other(format!("this process has {n} threads and may not fork; this is a defect"))),
    }
}

/// Makes this process a grandchild of its parent, in a session of its own: the parent need not reap it and a
/// terminal's signals do not reach it. Returns in the grandchild only; the processes between exit with 0.
pub fn detach() -> io::Result<()> {
    for round in 0..2 {
        assert_single_threaded()?;
        // SAFETY: this process has one thread (asserted), so the child may go on like any process.
        match unsafe { fork() }? {
            ForkResult::Parent { .. } => leave(0),
            ForkResult::Child if round == 0 => drop(nix::unistd::setsid()?),
            ForkResult::Child => {}
        }
    }
    Ok(())
}

/// Ends this process at once, without running what `exit` would run.
pub fn leave(status: i32) -> ! {
    // SAFETY: _exit takes any status and does not return.
    unsafe { libc::_exit(status) }
}

/// Runs `work` in a forked child, which may change namespaces or ids as it likes, and returns what it answered.
/// `attend` runs meanwhile in this process with the child's id and a socket to it (the child's end is the argument of
/// `work`); the child is killed after `deadline`.
pub fn in_child(
    deadline: Duration,
    work: impl FnOnce(&mut UnixStream) -> String,
    attend: impl FnOnce(i32, &mut UnixStream) -> io::Result<()>,
) -> io::Result<String> {
    assert_single_threaded()?;
    let (mut ours, mut theirs) = UnixStream::pair()?;
    // SAFETY: this process has one thread (asserted), so the child may go on like any process.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(ours);
            let answer = work(&mut theirs);
            let written = theirs.write_all(answer.as_bytes());
            leave(i32::from(written.is_err()))
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            ours.set_read_timeout(Some(deadline))?;
            let result = attend(child.as_raw(), &mut ours).and_then(|()| hear(&mut ours));
            end(child);
            result
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
