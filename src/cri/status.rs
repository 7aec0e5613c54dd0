//! THE table from errors to gRPC codes. No handler picks a code for an error of the domain or of the image service.
//!
//! A message travels in an HTTP/2 header, percent-encoded (up to three bytes for one): one that is too long breaks
//! the whole connection for clients with a small header limit, so it is cut.

use tonic::{Code, Status};

use crate::image::{ImageError, ImageErrorKind};
use crate::pod::{PodError, PodErrorKind};

/// Longest message. Three times as much stays below the 16 KiB that the strictest client takes for all headers.
pub const MESSAGE_LIMIT_BYTES: usize = 4 << 10;

/// Ends a message that was cut.
const CUT_MARK: &str = " ... (cut)";

/// By this prefix a kubelet knows that the registry, not the image, is at fault.
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";

/// The code of an error of the domain.
pub fn code_of_pod(kind: PodErrorKind) -> Code {
    match kind {
        PodErrorKind::NotFound => Code::NotFound,
        PodErrorKind::AlreadyExists => Code::AlreadyExists,
        PodErrorKind::Invalid => Code::InvalidArgument,
        PodErrorKind::FailedPrecondition => Code::FailedPrecondition,
        PodErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        PodErrorKind::ResourceExhausted => Code::ResourceExhausted,
        PodErrorKind::Unimplemented => Code::Unimplemented,
        PodErrorKind::Unavailable => Code::Unavailable,
        PodErrorKind::Internal => Code::Internal,
    }
}

/// The code of an error of the image service.
pub fn code_of_image(kind: ImageErrorKind) -> Code {
    match kind {
        ImageErrorKind::NotFound => Code::NotFound,
        ImageErrorKind::Invalid => Code::InvalidArgument,
        ImageErrorKind::BadImage => Code::DataLoss,
        ImageErrorKind::Unauthorized => Code::PermissionDenied,
        ImageErrorKind::Unavailable => Code::Unavailable,
        ImageErrorKind::Exhausted => Code::ResourceExhausted,
        ImageErrorKind::Busy => Code::FailedPrecondition,
        ImageErrorKind::Untrusted => Code::PermissionDenied,
        ImageErrorKind::Internal => Code::Internal,
    }
}

impl From<PodError> for Status {
    fn from(error: PodError) -> Self {
        Status::new(code_of_pod(error.kind), cut(error.message))
    }
}

impl From<ImageError> for Status {
    fn from(error: ImageError) -> Self {
        let message = match error.kind {
            ImageErrorKind::Unavailable if !error.message.starts_with(REGISTRY_UNAVAILABLE) => {
                format!("{REGISTRY_UNAVAILABLE}: {}", error.message)
            }
            _ => error.message,
        };
        Status::new(code_of_image(error.kind), cut(message))
    }
}

/// At most [`MESSAGE_LIMIT_BYTES`] of `message`, cut between two characters.
pub fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_LIMIT_BYTES {
        message.truncate(message.floor_char_boundary(MESSAGE_LIMIT_BYTES - CUT_MARK.len()));
        message.push_str(CUT_MARK);
    }
    message
}

/// As gRPC writes it, for metrics.
pub fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether an answer with this code is a fault of ours (or of the machine), to be logged as an error.
pub fn is_our_fault(code: Code) -> bool {
    matches!(code, Code::Internal | Code::Unknown | Code::DataLoss | Code::ResourceExhausted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_a_pods_error_has_its_code() {
        let table = [
            (PodErrorKind::NotFound, Code::NotFound),
            (PodErrorKind::AlreadyExists, Code::AlreadyExists),
            (PodErrorKind::Invalid, Code::InvalidArgument),
            (PodErrorKind::FailedPrecondition, Code::FailedPrecondition),
            (PodErrorKind::DeadlineExceeded, Code::DeadlineExceeded),
            (PodErrorKind::ResourceExhausted, Code::ResourceExhausted),
            (PodErrorKind::Unimplemented, Code::Unimplemented),
            (PodErrorKind::Unavailable, Code::Unavailable),
            (PodErrorKind::Internal, Code::Internal),
        ];
        for (kind, code) in table {
            let status = Status::from(PodError { kind, message: "container x: gone".to_owned() });
            assert_eq!((status.code(), status.message()), (code, "container x: gone"));
        }
    }

    #[test]
    fn every_kind_of_an_images_error_has_its_code() {
        let table = [
            (ImageErrorKind::NotFound, Code::NotFound),
            (ImageErrorKind::Invalid, Code::InvalidArgument),
            (ImageErrorKind::BadImage, Code::DataLoss),
            (ImageErrorKind::Unauthorized, Code::PermissionDenied),
            (ImageErrorKind::Unavailable, Code::Unavailable),
            (ImageErrorKind::Exhausted, Code::ResourceExhausted),
            (ImageErrorKind::Busy, Code::FailedPrecondition),
            (ImageErrorKind::Untrusted, Code::PermissionDenied),
            (ImageErrorKind::Internal, Code::Internal),
        ];
        for (kind, code) in table {
            assert_eq!(Status::from(ImageError { kind, message: String::new() }).code(), code);
        }
    }

    #[test]
    fn a_registry_that_does_not_answer_is_told_in_the_kubelets_word() {
        for message in ["a.example: refused", "RegistryUnavailable: a.example: refused"] {
            let error = ImageError { kind: ImageErrorKind::Unavailable, message: message.to_owned() };
            assert_eq!(Status::from(error).message(), "RegistryUnavailable: a.example: refused");
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        for text in ["x", "é", "🦗"] {
            let short = cut(text.repeat(2 * MESSAGE_LIMIT_BYTES));
            assert!(short.len() <= MESSAGE_LIMIT_BYTES && short.ends_with(CUT_MARK));
        }
        assert_eq!(cut("short".to_owned()), "short");
    }
}
