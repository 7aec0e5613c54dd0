//! Processes started in other namespaces, with a descriptor at a number of its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Below this are the numbers that a child may be given descriptors at.
const FIRST_FREE: i32 = 16;

/// Makes the command's child block no signal, join `namespaces`, in that order, and find `descriptor` at `number` when it is executed.
/// Both are duplicated now. Everything else that is close-on-exec stays so.
pub fn join_and_pass(
    command: &mut Command,
    namespaces: &[OwnedFd],
    descriptor: impl AsFd,
    number: i32,
) -> io::Result<()> {
    prepare(command, namespaces, Some((descriptor.as_fd(), number)), false)
}

/// As [`join_and_pass`], with a descriptor or without, for a child that is killed when the thread that starts it ends.
pub fn join_and_die_with_thread(
    command: &mut Command,
    namespaces: &[OwnedFd],
    passed: Option<(BorrowedFd<'_>, i32)>,
) -> io::Result<()> {
    prepare(command, namespaces, passed, true)
}

fn prepare(
    command: &mut Command,
    namespaces: &[OwnedFd],
    passed: Option<(BorrowedFd<'_>, i32)>,
    dies_with_thread: bool,
) -> io::Result<()> {
    // Out of the way of the number, which the child overwrites.
    let namespaces = namespaces.iter().map(duplicate).collect::<io::Result<Vec<_>>>()?;
    let passed = passed.map(|(fd, number)| Ok::<_, io::Error>((duplicate(fd)?, number))).transpose()?;
    let prepare = move || {
        // A program that is started with SIGTERM blocked does not hear it.
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        for namespace in &namespaces {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None)?;
        }
        if dies_with_thread {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        }
        let Some((descriptor, number)) = &passed else { return Ok(()) };
        // SAFETY: dup2 on plain numbers; `number` is not owned by anything in a child that is about to exec.
        match unsafe { libc::dup2(descriptor.as_raw_fd(), *number) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure runs between fork and exec: it makes system calls only, allocates nothing, takes no lock.
    unsafe { command.pre_exec(prepare) };
    Ok(())
}

/// Takes ownership of a descriptor that this process was executed with, and makes it close-on-exec. An error when there
/// is none, and when it was taken before: what is inherited is not close-on-exec, all that is opened here is.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: borrowed for the one call, which fails cleanly when the number is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if rustix::io::fcntl_getfd(borrowed)?.contains(rustix::io::FdFlags::CLOEXEC) {
        return Err(io::ErrorKind::NotFound.into());
    }
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: open, inherited (see above), and therefore owned by nothing else in this process.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn duplicate(descriptor: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(descriptor, FIRST_FREE)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[test]
    fn a_child_finds_the_descriptor_at_its_number() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo here >&3"]);
        join_and_pass(&mut command, &[], &writer, 3).expect("prepared");
        assert!(command.status().expect("run").success());
        drop((command, writer));
        let mut said = String::new();
        File::from(reader).read_to_string(&mut said).expect("read");
        assert_eq!(said, "here\n");
    }
}
