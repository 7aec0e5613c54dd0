//! PID 1 of a pod whose containers share a PID namespace: collects orphans, and takes everything in the namespace along when it
//! dies. It never executes a program and never changes its credentials, so its parent-death signal cannot be lost.

use std::os::fd::OwnedFd;

use rustix::process::{Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use super::fault::{Fault, Result};
use super::{sandbox, signals};
use crate::sys::{descriptors, fork, namespaces};

/// Forks it; answers its process id.
pub fn start(supervisor: &OwnedFd) -> Result<i32> {
    fork::fork_elsewhere(None, || namespaces::unshare(UnshareFlags::NEWPID), || live(supervisor))
        .map_err(Fault::io("cannot make the pod's PID namespace"))
}

fn live(supervisor: &OwnedFd) -> i32 {
    let _ = rustix::thread::set_name(c"cricket-init");
    if rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_err() || sandbox::is_dead(supervisor) {
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
