//! PID 1 of a pod whose containers share a PID namespace: collects orphans, and takes everything in the namespace along
//! when it dies. It never executes a program.
//!
//! The containers see it, and one with CAP_SYS_PTRACE may look into it or make it do things. So it has nothing: an
//! empty read-only root, no descriptor but /dev/null, no capability.

use std::os::fd::OwnedFd;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use super::fault::{Fault, Result};
use super::process_settings::Capabilities;
use super::user_namespace::UserNamespace;
use super::{credentials, sandbox, signals};
use crate::sys::{descriptors, fork, namespaces};

/// A directory that every node has, to be mounted over in a mount namespace of its own.
const ANY_DIRECTORY: &str = "/proc";

/// Forks it; answers its process id.
pub fn start(supervisor: &OwnedFd, user_namespace: Option<&UserNamespace>) -> Result<i32> {
    let enter = |_| {
        // Whose the PID namespace then is: who mounts its /proc must be privileged there.
        user_namespace.map_or(Ok(()), UserNamespace::enter)?;
        namespaces::unshare(UnshareFlags::NEWPID)?;
        // In the helper, which nobody in the new namespace sees.
        Ok(give_up_everything())
    };
    fork::fork_elsewhere(None, enter, |ready| live(supervisor, ready))
        .map_err(Fault::io("cannot make the pod's PID namespace"))
}

fn give_up_everything() -> Result<()> {
    let last = credentials::last_capability();
    let failed = "cannot give the pod's first process an empty root";
    let null =
        rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(Fault::io(failed))?;
    rustix::stdio::dup2_stdin(&null).map_err(Fault::io(failed))?;
    rustix::stdio::dup2_stdout(&null).map_err(Fault::io(failed))?;
    rustix::stdio::dup2_stderr(&null).map_err(Fault::io(failed))?;
    namespaces::unshare(UnshareFlags::NEWNS).map_err(Fault::io(failed))?;
    empty_root().map_err(Fault::io(failed))?;
    let nothing = Capabilities::default();
    credentials::narrow_bounding_set(&nothing, last)?;
    credentials::set_capabilities(&nothing)
}

fn empty_root() -> nix::Result<()> {
    let none: Option<&str> = None;
    let closed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("empty"), ANY_DIRECTORY, Some("tmpfs"), closed, Some("mode=555,size=4k"))?;
    nix::unistd::chdir(ANY_DIRECTORY)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    mount(none, "/", none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | closed, none)
}

fn live(supervisor: &OwnedFd, ready: Result<()>) -> i32 {
    let _ = rustix::thread::set_name(c"cricket-init");
    // After the last change of credentials, which could lose it.
    let bound = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if ready.is_err() || bound.is_err() || sandbox::is_dead(supervisor) {
        return 1;
    }
    let _ = descriptors::close_all_except(&[]);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) => {}
            // Nobody to collect yet: sleep until a child (an orphan of a container) has ended.
            Err(_) => signals::wait_for_child(),
        }
    }
}
