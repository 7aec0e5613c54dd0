//! What a supervisor answers when it cannot do what was asked.

use std::fmt::Display;
use std::io;

use crate::proto::supervisor as wire;
use crate::proto::supervisor::ErrorKind;
use crate::sys::kernel;

/// Longest text of an error on the wire, in bytes.
const TEXT_LIMIT_BYTES: usize = 4096;

/// What it means, and what to do.
const NO_MORE_PROCESSES: &str = "this user has as many processes as it may (`ulimit -u`), or a cgroup (pids.max): end some, or \
                                 raise the limit";

/// A refusal: what happened, to what, what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// For the daemon's own error codes.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
}

/// Result of everything in the supervisor.
pub type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    /// A fault with this text, cut to what the wire allows.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > TEXT_LIMIT_BYTES {
            let end = (0..=TEXT_LIMIT_BYTES).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
            message.truncate(end);
        }
        Self { kind, message }
    }

    /// For `map_err`: the kernel refused `action`.
    pub fn io<E: Into<io::Error>>(action: impl Display) -> impl FnOnce(E) -> Self {
        move |error| {
            let error: io::Error = error.into();
            Self::new(kind_of(&error), format!("{action}: {error}"))
        }
    }

    /// For `map_err`: the kernel made no process for `action`.
    pub fn fork<E: Into<io::Error>>(action: impl Display) -> impl FnOnce(E) -> Self {
        move |error| {
            let error: io::Error = error.into();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => Self::no_process(format!("{action}: {error}")),
                _ => Self::io(action)(error),
            }
        }
    }

    /// Somebody may have no more processes.
    pub fn no_process(what: impl Display) -> Self {
        Self::new(ErrorKind::ResourceExhausted, format!("{what}: {NO_MORE_PROCESSES}"))
    }

    /// For `map_err`: any other error below `action`.
    pub fn because<E: Display>(action: impl Display) -> impl FnOnce(E) -> Self {
        move |error| Self::new(ErrorKind::Internal, format!("{action}: {error}"))
    }

    /// There is no such container or exec.
    pub fn not_found(what: impl Display) -> Self {
        Self::new(ErrorKind::NotFound, format!("{what} is not in this pod"))
    }

    /// Not in this state.
    pub fn state(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::FailedPrecondition, message)
    }

    /// The request is malformed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// The image is not fit to run.
    pub fn image(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadImage, message)
    }
}

fn kind_of(error: &io::Error) -> ErrorKind {
    // The process that was asked about has ended meanwhile.
    if error.raw_os_error() == Some(libc::ESRCH) {
        return ErrorKind::FailedPrecondition;
    }
    match error.kind() {
        _ if kernel::is_exhausted(error) => ErrorKind::ResourceExhausted,
        io::ErrorKind::TimedOut => ErrorKind::DeadlineExceeded,
        _ => ErrorKind::Internal,
    }
}

impl From<Fault> for wire::Error {
    fn from(fault: Fault) -> Self {
        Self { kind: fault.kind.into(), message: fault.message }
    }
}

impl From<wire::Error> for Fault {
    fn from(error: wire::Error) -> Self {
        Self::new(error.kind(), error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let fault = Fault::new(ErrorKind::Internal, "ä".repeat(TEXT_LIMIT_BYTES));
        assert_eq!(fault.message.len(), TEXT_LIMIT_BYTES);
        assert!(
            Fault::new(ErrorKind::Internal, format!("x{}", "ä".repeat(TEXT_LIMIT_BYTES))).message.len()
                < TEXT_LIMIT_BYTES
        );
    }
}
