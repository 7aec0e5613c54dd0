//! The one error of the image service: a kind for the gRPC code, and a sentence for people.

/// What went wrong; `pod` and `cri` turn `kind()` into a gRPC code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ImageError {
    /// For the gRPC code.
    pub kind: ImageErrorKind,
    /// What happened, to what, what to do.
    pub message: String,
}

/// Kinds of [`ImageError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageErrorKind {
    /// No such image, here or in the registry.
    NotFound,
    /// The reference, archive or request is malformed.
    Invalid,
    /// The image's bytes are not what they claim, or not fit to be unpacked.
    BadImage,
    /// The registry refused the credentials.
    Unauthorized,
    /// The registry does not answer.
    Unavailable,
    /// Disk full, or a limit on an image reached.
    Exhausted,
    /// In use.
    Busy,
    /// Everything else.
    Internal,
}

impl ImageError {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ImageErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl From<crate::store::RecordError> for ImageError {
    fn from(error: crate::store::RecordError) -> Self {
        let kind = if error.is_disk_full() { ImageErrorKind::Exhausted } else { ImageErrorKind::Internal };
        Self::new(kind, error.to_string())
    }
}
