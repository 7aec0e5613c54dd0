//! System calls that older kernels lack, each tried with arguments that make it do nothing.

/// No descriptor; every call below answers EBADF, EINVAL or EFAULT to it where the kernel knows the call.
const NONE: libc::c_long = -1;

/// The system calls that cricket cannot do without, with the kernel that brought them; those that this kernel (or a
/// seccomp filter around us) refuses.
pub fn missing_calls() -> Vec<&'static str> {
    const CALLS: [(&str, libc::c_long); 7] = [
        ("open_tree (5.2)", libc::SYS_open_tree),
        ("move_mount (5.2)", libc::SYS_move_mount),
        ("fsmount (5.2)", libc::SYS_fsmount),
        ("pidfd_open (5.3)", libc::SYS_pidfd_open),
        ("openat2 (5.6)", libc::SYS_openat2),
        ("close_range (5.9)", libc::SYS_close_range),
        ("mount_setattr (5.12)", libc::SYS_mount_setattr),
    ];
    CALLS.iter().filter(|(_, number)| !exists(*number)).map(|(name, _)| *name).collect()
}

fn exists(number: libc::c_long) -> bool {
    // SAFETY: with -1 for every argument each call listed above fails while it checks its arguments and touches
    // nothing: descriptors, pids and flags are invalid, and so are addresses. close_range refuses unknown flags first.
    let result = unsafe { libc::syscall(number, NONE, NONE, NONE, NONE, NONE, NONE) };
    result != -1 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Whether something has run out: space, inodes, a quota, memory, descriptors. What frees some of it mends this.
pub fn is_exhausted(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{OutOfMemory, QuotaExceeded, StorageFull};
    // Those of descriptors have no kind.
    matches!(error.kind(), StorageFull | QuotaExceeded | OutOfMemory)
        || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_that_runs_the_tests_lacks_nothing() {
        assert_eq!(super::missing_calls(), Vec::<&str>::new());
    }
}
