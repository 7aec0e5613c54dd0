//! The one error of the image service: a kind for the gRPC code, and a sentence for people.

/// What a person does about a full disk.
const ROOM_ADVICE: &str = "free room on the disk of cricket's root directory (`cricket image prune --all` removes what no container uses), then try again";

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
    /// In use, or pinned.
    Busy,
    /// A signature that the policy wants is missing or wrong.
    Untrusted,
    /// Everything else.
    Internal,
}

impl ImageError {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ImageErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The file system took no more: `message` says of what, and the person is told what frees room.
    pub fn disk_full(message: &str) -> Self {
        Self::new(ImageErrorKind::Exhausted, format!("{message}; {ROOM_ADVICE}"))
    }
}

impl From<crate::store::RecordError> for ImageError {
    fn from(error: crate::store::RecordError) -> Self {
        match error.is_disk_full() {
            true => Self::disk_full(&error.to_string()),
            false => Self::new(ImageErrorKind::Internal, error.to_string()),
        }
    }
}
