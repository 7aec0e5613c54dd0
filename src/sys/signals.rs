//! Actions of signals. No handler of ours ever runs code: a signal is ignored, does its default, or is read from a
//! descriptor.

use std::io;

use nix::sys::signal::{SigAction, SigHandler, Signal};

/// Sets the action of a signal to its default or to ignoring it.
pub fn set_handler(signal: Signal, action: SigAction) -> io::Result<()> {
    if !matches!(action.handler(), SigHandler::SigDfl | SigHandler::SigIgn) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "signals are not handled by code"));
    }
    // SAFETY: no handler function is installed (checked above), so none can run at a bad moment.
    unsafe { nix::sys::signal::sigaction(signal, &action) }?;
    Ok(())
}

/// Signals of the kernel, real-time ones and those that the C library keeps to itself included.
const SIGNALS: libc::c_int = 64;

/// Bytes of the kernel's signal set.
const SIGNAL_SET_BYTES: usize = 8;

/// Gives every signal its default action, also those that sigaction(3) refuses to touch.
pub fn default_all() -> io::Result<()> {
    // struct kernel_sigaction: handler (SIG_DFL is zero), flags, restorer, mask.
    let default = [0u64; 4];
    for signal in 1..=SIGNALS {
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
            continue;
        }
        let nothing = std::ptr::null_mut::<u64>();
        // SAFETY: the kernel reads a kernel_sigaction, at most 32 bytes, and writes nothing; no handler is installed.
        let result =
            unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), nothing, SIGNAL_SET_BYTES) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
