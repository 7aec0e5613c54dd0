//! Actions of signals. No handler of ours ever runs code: a signal is ignored, does its default, or is read from a descriptor.

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
