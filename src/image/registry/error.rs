//! What a registry did wrong, and what of it is worth another try.
//!
//! No text of an error holds a credential, a token or a signed address: only hosts and paths of ours are named, and of
//! what a registry says itself only the short message of its error document.

use std::error::Error;
use std::time::Duration;

use http::StatusCode;
use oci_client::errors::OciEnvelope;

use super::hosts::HostsError;
use crate::image::manifest::ManifestError;
use crate::image::{ImageError, ImageErrorKind};

/// A kubelet looks for this at the start of a message.
const UNAVAILABLE_PREFIX: &str = "RegistryUnavailable";
/// What is quoted of a registry's own words.
const QUOTED_LENGTH_MAX: usize = 200;

/// One failure, of one host.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// The host answers that there is no such thing.
    #[error("{host} has no {what}{said}; check the name and the tag")]
    NotFound {
        /// Who.
        host: String,
        /// Which.
        what: String,
        /// In its words.
        said: String,
    },
    /// Credentials are missing, wrong or not enough.
    #[error("{host} refuses {what}{said}; check the image's name and the pull secret")]
    Unauthorized {
        /// Who.
        host: String,
        /// Which.
        what: String,
        /// In its words, or ours.
        said: String,
    },
    /// It does not answer, or not now.
    #[error("{host} does not serve {what}: {cause}; see whether it runs and can be reached from here, then try again")]
    Unavailable {
        /// Who.
        host: String,
        /// Which.
        what: String,
        /// Why.
        cause: String,
        /// It asked for this much patience.
        retry_after: Option<Duration>,
    },
    /// It answers, and the answer cannot be used.
    #[error("{host} answers {what} wrongly: {problem}")]
    BadAnswer {
        /// Who.
        host: String,
        /// Which.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What is here about the host cannot be used.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// A document that came is not what it should be.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Every host of a name failed; the last one is the registry itself.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    EveryHost(Vec<RegistryError>),
}

impl RegistryError {
    /// Whether the same request may succeed soon.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// How long the host asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The failures of the hosts of a name, in their order, as one.
    pub fn of_hosts(mut errors: Vec<Self>) -> Self {
        match errors.len() {
            1 => errors.remove(0),
            _ => Self::EveryHost(errors),
        }
    }

    fn kind(&self) -> ImageErrorKind {
        match self {
            Self::NotFound { .. } => ImageErrorKind::NotFound,
            Self::Unauthorized { .. } => ImageErrorKind::Unauthorized,
            Self::Unavailable { .. } => ImageErrorKind::Unavailable,
            Self::BadAnswer { .. } => ImageErrorKind::BadImage,
            Self::Hosts(_) => ImageErrorKind::Internal,
            Self::Manifest(error) => ImageError::from(error.clone()).kind,
            Self::EveryHost(errors) => errors.last().map_or(ImageErrorKind::NotFound, Self::kind),
        }
    }
}

impl From<RegistryError> for ImageError {
    fn from(error: RegistryError) -> Self {
        match error.kind() {
            kind @ ImageErrorKind::Unavailable => Self::new(kind, format!("{UNAVAILABLE_PREFIX}: {error}")),
            kind => Self::new(kind, error.to_string()),
        }
    }
}

/// Who was asked for what: the subject of every error.
#[derive(Debug, Clone)]
pub struct Subject {
    /// `registry.example:5000`.
    pub host: String,
    /// `manifest latest of library/busybox`.
    pub what: String,
}

impl Subject {
    /// Of a status that is no success. `body` is the beginning of the answer where it came from the host itself.
    pub fn refused(&self, status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> RegistryError {
        let (host, what, said) = (self.host.clone(), self.what.clone(), said(body));
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { host, what, said },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized { host, what, said },
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                RegistryError::Unavailable { host, what, cause: format!("status {status}{said}"), retry_after }
            }
            status if status.is_server_error() => {
                RegistryError::Unavailable { host, what, cause: format!("status {status}{said}"), retry_after }
            }
            status => RegistryError::BadAnswer { host, what, problem: format!("status {status}{said}") },
        }
    }

    /// Credentials are needed, or these do not do.
    pub fn unauthorized(&self, said: &str) -> RegistryError {
        RegistryError::Unauthorized { host: self.host.clone(), what: self.what.clone(), said: format!(" ({said})") }
    }

    /// A connection that failed.
    pub fn unavailable(&self, cause: impl Into<String>) -> RegistryError {
        let (host, what) = (self.host.clone(), self.what.clone());
        RegistryError::Unavailable { host, what, cause: cause.into(), retry_after: None }
    }

    /// An answer that cannot be used.
    pub fn bad_answer(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::BadAnswer { host: self.host.clone(), what: self.what.clone(), problem: problem.into() }
    }

    /// A failure of the HTTP library; its addresses may hold signatures and are dropped.
    pub fn transport(&self, error: reqwest::Error) -> RegistryError {
        let error = error.without_url();
        let mut causes = vec![error.to_string()];
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !causes.iter().any(|known| known.contains(&text)) {
                causes.push(text);
            }
            source = cause.source();
        }
        self.unavailable(quoted(&causes.join(": ")))
    }
}

/// ` (message)` of an error document, in printable characters; empty where there is none.
pub fn said(body: &[u8]) -> String {
    let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(body) else { return String::new() };
    match envelope.errors.into_iter().map(|error| error.message).find(|message| !message.is_empty()) {
        Some(message) => format!(" ({})", quoted(&message)),
        None => String::new(),
    }
}

fn quoted(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(QUOTED_LENGTH_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_kinds_and_only_passing_ones_are_tried_again() {
        let subject = Subject { host: "reg.io".to_owned(), what: "manifest 1 of a".to_owned() };
        for (status, kind, passing) in [
            (404, ImageErrorKind::NotFound, false),
            (401, ImageErrorKind::Unauthorized, false),
            (403, ImageErrorKind::Unauthorized, false),
            (429, ImageErrorKind::Unavailable, true),
            (503, ImageErrorKind::Unavailable, true),
            (418, ImageErrorKind::BadImage, false),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let error = subject.refused(status, None, b"");
            assert_eq!(error.is_passing(), passing, "{status}");
            let error = ImageError::from(error);
            assert_eq!(error.kind, kind, "{status}");
            assert_eq!(error.message.starts_with("RegistryUnavailable: "), passing, "{error}");
        }
    }

    #[test]
    fn a_registrys_words_are_quoted_shortly_and_plainly() {
        let long = "x".repeat(5000);
        let body = format!(r#"{{"errors":[{{"code":"DENIED","message":"no\u001b[31m {long}"}}]}}"#);
        let text = said(body.as_bytes());
        assert!(text.starts_with(" (no[31m xxx") && text.len() < 210, "{text}");
        assert_eq!(said(b"<html>"), "");
    }

    #[test]
    fn the_last_host_decides_the_kind() {
        let subject = Subject { host: "reg.io".to_owned(), what: "a".to_owned() };
        let error = RegistryError::of_hosts(vec![subject.unavailable("down"), subject.unauthorized("no")]);
        assert_eq!(ImageError::from(error).kind, ImageErrorKind::Unauthorized);
    }
}
