//! The kernel.

use super::Finding;
use crate::sys::kernel::missing_calls;

/// System calls.
pub fn features() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match missing_calls().as_slice() {
        [] => Finding::ok("kernel", format!("{release}: every system call that is needed")),
        missing => Finding::fail(
            "kernel",
            format!("{release} refuses {}", missing.join(", ")),
            "boot Linux 5.13 or newer; in a container, allow these calls in its seccomp profile",
        ),
    }
}

/// Filters of system calls.
pub fn seccomp() -> Finding {
    match std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.split_ascii_whitespace().any(|action| action == "errno") => {
            Finding::ok("seccomp", "containers' system calls can be filtered")
        }
        _ => Finding::fail(
            "seccomp",
            "this kernel has no seccomp filters: containers with the default profile cannot start",
            "boot a kernel with CONFIG_SECCOMP_FILTER=y",
        ),
    }
}
