//! Why a layer could not be unpacked.

use std::io;

use rustix::io::Errno;

use super::super::{ImageError, ImageErrorKind};

/// Characters of an image's names that a message repeats.
const QUOTE_LIMIT_CHARS: usize = 100;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The bytes are not a layer, or not the one that was asked for.
    #[error("{0}")]
    Malformed(String),
    /// More than we take from any image.
    #[error("{what} over the limit of {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much we take.
        limit: u64,
    },
    /// The file system refused.
    #[error("cannot {action} {path}: {source}")]
    Write {
        /// What was tried.
        action: &'static str,
        /// On what, quoted.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Where the bytes come from failed.
    #[error("reading failed: {0}")]
    Source(io::Error),
    /// Nobody wants the layer any more.
    #[error("stopped")]
    Stopped,
}

impl UnpackError {
    /// For `map_err` on a system call.
    pub fn write(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Self {
        let path = quoted(path);
        move |errno| Self::Write { action, path, source: errno.into() }
    }

    fn kind(&self) -> ImageErrorKind {
        match self {
            Self::Malformed(_) => ImageErrorKind::BadImage,
            Self::Limit { .. } => ImageErrorKind::Exhausted,
            Self::Write { source, .. } => match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => ImageErrorKind::Exhausted,
                Some(
                    Errno::NAMETOOLONG
                    | Errno::INVAL
                    | Errno::NOTDIR
                    | Errno::ISDIR
                    | Errno::MLINK
                    | Errno::NOENT
                    | Errno::LOOP,
                ) => ImageErrorKind::BadImage,
                _ => ImageErrorKind::Internal,
            },
            Self::Source(_) => ImageErrorKind::Unavailable,
            Self::Stopped => ImageErrorKind::Internal,
        }
    }

    /// With what was unpacked (`layer sha256:...`) before it.
    pub fn of(self, what: &str) -> ImageError {
        let message = format!("{what}: {self}");
        match &self {
            Self::Write { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                ImageError::disk_full(&message)
            }
            _ => ImageError::new(self.kind(), message),
        }
    }
}

/// A reader hands our errors through `io::Error`; everything else it says is about the bytes it read.
impl From<io::Error> for UnpackError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => ours,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Self::Malformed("it is cut short".into()),
            Err(e) => Self::Malformed(format!("it cannot be decompressed: {e}")),
        }
    }
}

impl From<UnpackError> for io::Error {
    fn from(error: UnpackError) -> Self {
        Self::other(error)
    }
}

/// An image's bytes for a message: escaped, and cut.
pub fn quoted(bytes: &[u8]) -> String {
    let mut text: String = String::from_utf8_lossy(bytes).chars().take(QUOTE_LIMIT_CHARS).collect();
    if text.len() < bytes.len() {
        text.push('…');
    }
    format!("{text:?}")
}
