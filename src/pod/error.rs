//! What goes wrong in the domain, and how errors of the image service, the executor and the records become that.
//! `cri/status.rs` holds the one table from kinds to gRPC codes.

use crate::executor::client::ExecutorError;
use crate::image::{ImageError, ImageErrorKind};
use crate::proto::supervisor as wire;
use crate::store::RecordError;
use crate::sys::kernel;

/// Longest text of an error: it travels in an HTTP/2 header.
const MESSAGE_LIMIT_BYTES: usize = 4096;
/// Longest piece of a request that an error quotes.
const QUOTE_LIMIT_CHARS: usize = 80;

/// Kinds of [`PodError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodErrorKind {
    /// Unknown id.
    NotFound,
    /// The name is taken by another object.
    AlreadyExists,
    /// The request is malformed.
    Invalid,
    /// Not in this state.
    FailedPrecondition,
    /// A deadline passed.
    DeadlineExceeded,
    /// Disk, memory or a quota is exhausted.
    ResourceExhausted,
    /// Honest refusal.
    Unimplemented,
    /// Could be tried again.
    Unavailable,
    /// Everything else.
    Internal,
}

/// What went wrong: what happened, to what, what to do. At most 4 KiB of text.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct PodError {
    /// For the gRPC code.
    pub kind: PodErrorKind,
    /// The text.
    pub message: String,
}

impl PodError {
    /// With its text cut to what a client can take.
    pub fn new(kind: PodErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE_LIMIT_BYTES {
            let mut end = MESSAGE_LIMIT_BYTES;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        Self { kind, message }
    }

    /// The request is malformed.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(PodErrorKind::Invalid, message)
    }

    /// Nothing has this id.
    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        Self::new(PodErrorKind::NotFound, format!("there is no {what} {:?}", quoted(id)))
    }

    /// Not in this state.
    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(PodErrorKind::FailedPrecondition, message)
    }

    /// Not built.
    pub(crate) fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(PodErrorKind::Unimplemented, message)
    }

    /// Everything else.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(PodErrorKind::Internal, message)
    }

    /// A system call failed; that something has run out is told apart.
    pub(crate) fn io(action: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let exhausted = kernel::is_exhausted(error);
        let kind = if exhausted { PodErrorKind::ResourceExhausted } else { PodErrorKind::Internal };
        Self::new(kind, format!("cannot {action}: {error}"))
    }

    /// Says for whom it was tried: `container app of pod default/web: ...`.
    pub(crate) fn of(self, whom: &str) -> Self {
        Self::new(self.kind, format!("{whom}: {}", self.message))
    }
}

/// As much of a client's text as an error may quote.
pub(crate) fn quoted(text: &str) -> String {
    text.chars().take(QUOTE_LIMIT_CHARS).collect()
}

impl From<ExecutorError> for PodError {
    fn from(error: ExecutorError) -> Self {
        let kind = match &error {
            ExecutorError::Refused { kind, .. } => from_wire(*kind),
            ExecutorError::Gone => PodErrorKind::Unavailable,
            ExecutorError::Timeout(_) => PodErrorKind::DeadlineExceeded,
            ExecutorError::Io { source, .. } if kernel::is_exhausted(source) => PodErrorKind::ResourceExhausted,
            ExecutorError::Io { .. } => PodErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

fn from_wire(kind: wire::ErrorKind) -> PodErrorKind {
    match kind {
        wire::ErrorKind::Internal => PodErrorKind::Internal,
        wire::ErrorKind::NotFound => PodErrorKind::NotFound,
        wire::ErrorKind::AlreadyExists => PodErrorKind::AlreadyExists,
        wire::ErrorKind::InvalidArgument => PodErrorKind::Invalid,
        wire::ErrorKind::FailedPrecondition | wire::ErrorKind::BadImage => PodErrorKind::FailedPrecondition,
        wire::ErrorKind::DeadlineExceeded => PodErrorKind::DeadlineExceeded,
        wire::ErrorKind::ResourceExhausted => PodErrorKind::ResourceExhausted,
        wire::ErrorKind::Unimplemented => PodErrorKind::Unimplemented,
    }
}

impl From<ImageError> for PodError {
    fn from(error: ImageError) -> Self {
        let kind = match error.kind {
            ImageErrorKind::NotFound => PodErrorKind::NotFound,
            ImageErrorKind::Invalid => PodErrorKind::Invalid,
            ImageErrorKind::BadImage | ImageErrorKind::Busy => PodErrorKind::FailedPrecondition,
            ImageErrorKind::Unavailable => PodErrorKind::Unavailable,
            ImageErrorKind::Exhausted => PodErrorKind::ResourceExhausted,
            ImageErrorKind::Unauthorized | ImageErrorKind::Untrusted | ImageErrorKind::Internal => {
                PodErrorKind::Internal
            }
        };
        Self::new(kind, error.message)
    }
}

impl From<RecordError> for PodError {
    fn from(error: RecordError) -> Self {
        let kind = if error.is_exhausted() { PodErrorKind::ResourceExhausted } else { PodErrorKind::Internal };
        Self::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let error = PodError::invalid("ä".repeat(4096));
        assert!(error.message.len() <= MESSAGE_LIMIT_BYTES);
        assert!(error.message.ends_with('ä'));
    }

    #[test]
    fn what_a_client_sent_is_quoted_in_part() {
        assert!(PodError::not_found("pod", &"x".repeat(10_000)).message.len() < 120);
    }
}
