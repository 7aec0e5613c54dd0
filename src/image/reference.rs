//! Names of images as people type them, in the grammar that Docker made common, made complete:
//! `busybox` is `docker.io/library/busybox:latest`.
//!
//! ```text
//! [HOST[:PORT]/]PATH[/PATH...][:TAG][@DIGEST]
//! ```
//!
//! The first part is a host where it has a dot, a colon or an upper-case letter, or is `localhost`; otherwise the
//! image is Docker Hub's. A name with a tag and a digest means the digest. Nothing here looks anything up.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::digest::{Digest, DigestError};
use super::{ImageError, ImageErrorKind};

/// Longest host with its port: a DNS name has 253 characters.
const HOST_LENGTH_MAX: usize = 260;
/// Longest repository; registries refuse longer ones.
const REPOSITORY_LENGTH_MAX: usize = 255;
/// Longest tag, of the distribution specification.
const TAG_LENGTH_MAX: usize = 128;
/// Longest reference that is looked at: the parts' limits, the longest digest and the separators.
const REFERENCE_LENGTH_MAX: usize = HOST_LENGTH_MAX + REPOSITORY_LENGTH_MAX + TAG_LENGTH_MAX + 140;
/// What an error quotes of a name.
const QUOTED_LENGTH_MAX: usize = 100;

/// Where short names point.
const DEFAULT_HOST: &str = "docker.io";
/// What Docker once called it.
const LEGACY_DEFAULT_HOST: &str = "index.docker.io";
/// Docker Hub's own images.
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image name: {problem}")]
pub struct ReferenceError {
    text: String,
    problem: Problem,
}

/// Why it is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("it is empty")]
    Empty,
    #[error("it is longer than {REFERENCE_LENGTH_MAX} characters")]
    TooLong,
    #[error(
        "the host (up to {HOST_LENGTH_MAX} characters) is a DNS name, an IPv4 address or [IPv6], and may have a port"
    )]
    Host,
    #[error(
        "the repository (up to {REPOSITORY_LENGTH_MAX} characters) has lower-case letters and digits, joined by '.', '_', '__', '-' or '/'"
    )]
    Repository,
    #[error("64 hexadecimal digits are an image's id, not a name; write NAME@sha256:DIGEST")]
    Identifier,
    #[error("a tag has up to {TAG_LENGTH_MAX} letters, digits, '_', '.' and '-', and begins with none of the last two")]
    Tag,
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// Which of a repository's images.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Version {
    /// May be another image tomorrow.
    Tag(String),
    /// Always the same bytes.
    Digest(Digest),
}

/// A complete name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    version: Version,
}

impl Reference {
    /// `docker.io`, `localhost:5000`, `[::1]:5000`: the name people use, not necessarily where it is dialled.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag or digest.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The tag, where it is one.
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    /// The digest, where it is one.
    pub fn digest(&self) -> Option<&Digest> {
        match &self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(digest),
        }
    }

    /// `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// `docker.io/library/busybox:latest`, as in an image's `repo_tags`.
    pub fn repo_tag(&self) -> Option<String> {
        self.tag().map(|tag| format!("{}:{tag}", self.name()))
    }

    /// `docker.io/library/busybox@sha256:...`, as in an image's `repo_digests`.
    pub fn repo_digest(&self, manifest: &Digest) -> String {
        format!("{}@{manifest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.repository),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.repository),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError { text: text.chars().take(QUOTED_LENGTH_MAX).collect(), problem })
    }
}

impl From<ReferenceError> for ImageError {
    fn from(error: ReferenceError) -> Self {
        Self { kind: ImageErrorKind::Invalid, message: error.to_string() }
    }
}

/// The complete form of a name: `busybox` is `docker.io/library/busybox:latest`.
pub fn normalize(text: &str) -> Result<String, ReferenceError> {
    text.parse::<Reference>().map(|reference| reference.to_string())
}

/// The name with `registry` before it, if it has none of its own.
pub fn completed(text: &str, registry: &str) -> Option<String> {
    let has_host = text.split_once('/').is_some_and(|(first, _)| looks_like_host(first));
    (!has_host).then(|| format!("{registry}/{text}"))
}

fn parse(text: &str) -> Result<Reference, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if text.len() > REFERENCE_LENGTH_MAX {
        return Err(Problem::TooLong);
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
        None => (text, None),
    };
    // A colon before the last slash is a port's.
    let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[path_start..].split_once(':') {
        Some((last, tag)) => (&rest[..path_start + last.len()], Some(tag)),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(Problem::Tag);
    }
    let (host, repository) = split_host(name)?;
    let version = match digest {
        Some(digest) => Version::Digest(digest),
        None => Version::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
    };
    Ok(Reference { host, repository, version })
}

/// Splits and completes a name without tag and digest.
fn split_host(name: &str) -> Result<(String, String), Problem> {
    let (host, path) = match name.split_once('/') {
        Some((first, path)) if looks_like_host(first) => (first, path),
        _ => (DEFAULT_HOST, name),
    };
    if !is_host(host) {
        return Err(Problem::Host);
    }
    if path.len() > REPOSITORY_LENGTH_MAX || !path.split('/').all(is_path_component) {
        return Err(Problem::Repository);
    }
    if host == DEFAULT_HOST && path.len() == 64 && path.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Problem::Identifier);
    }
    let host = if host == LEGACY_DEFAULT_HOST { DEFAULT_HOST } else { host };
    let repository = if host == DEFAULT_HOST && !path.contains('/') {
        format!("{DEFAULT_NAMESPACE}/{path}")
    } else {
        path.to_owned()
    };
    Ok((host.to_owned(), repository))
}

fn looks_like_host(first: &str) -> bool {
    first == "localhost" || first.bytes().any(|b| b == b'.' || b == b':' || b.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    if text.len() > HOST_LENGTH_MAX {
        return false;
    }
    if let Some((address, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port_fits = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return port_fits && address.parse::<Ipv6Addr>().is_ok();
    }
    match text.split_once(':') {
        Some((name, port)) => is_port(port) && name.split('.').all(is_label),
        None => text.split('.').all(is_label),
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// One part of a DNS name.
fn is_label(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Letters and digits, joined by one dot, one or two underscores, or any number of dashes.
fn is_path_component(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut joint = 0;
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(|b| is_plain(*b)) || !bytes.last().is_some_and(|b| is_plain(*b)) {
        return false;
    }
    for (index, byte) in bytes.iter().enumerate() {
        if !is_plain(*byte) {
            continue;
        }
        let between = &bytes[joint..index];
        if !matches!(between, b"" | b"." | b"_" | b"__") && between.iter().any(|b| *b != b'-') {
            return false;
        }
        joint = index + 1;
    }
    true
}

fn is_tag(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=TAG_LENGTH_MAX).contains(&text.len()) && !text.starts_with(['.', '-']) && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn short_names_are_completed() {
        for (text, complete) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.29-2", "docker.io/library/busybox:1.29-2"),
            ("test.com:5000", "docker.io/library/test.com:5000"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:T", "localhost:5000/a/b:T"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("[fd00::1]/a__b/c--d:x", "[fd00::1]/a__b/c--d:x"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("Host/a", "Host/a:latest"),
            ("gcr.io/k8s-staging-cri-tools/test-image-tag:all", "gcr.io/k8s-staging-cri-tools/test-image-tag:all"),
        ] {
            assert_eq!(text.parse::<Reference>().expect(text).to_string(), complete);
        }
    }

    #[test]
    fn a_digest_outweighs_a_tag() {
        let reference: Reference = format!("reg.io/a:1@sha256:{HEX}").parse().expect("a reference");
        assert_eq!(reference.to_string(), format!("reg.io/a@sha256:{HEX}"));
        assert_eq!((reference.tag(), reference.repo_tag()), (None, None));
        assert_eq!(reference.digest().map(|d| reference.repo_digest(d)), Some(reference.to_string()));
    }

    #[test]
    fn malformed_names_are_refused() {
        let long_tag = format!("a:{}", "t".repeat(TAG_LENGTH_MAX + 1));
        let long_path = format!("reg.io/{}", "p".repeat(REPOSITORY_LENGTH_MAX + 1));
        let endless = "a".repeat(1 << 20);
        for text in [
            "",
            " ",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a:",
            "a@",
            "a:b:c",
            "a b",
            "a:.x",
            "a:-x",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "_a",
            "reg.io/",
            "reg.io:/a",
            "reg.io:0/a",
            "reg.io:99999/a",
            "reg.io:+1/a",
            ".reg.io/a",
            "reg..io/a",
            "-r.io/a",
            "[::1/a",
            "[::g]:1/a",
            "[::1]5/a",
            "https://reg.io/a",
            "reg.io/../a",
            "a@sha256:12",
            "a\0b",
            "a\n",
            "é",
            HEX,
            &long_tag,
            &long_path,
            &endless,
            "u:p@reg.io/a",
        ] {
            let error = text.parse::<Reference>().expect_err(text);
            assert!(error.to_string().len() < 600, "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_the_common_library_takes(text in "([a-zA-Z0-9.-]{1,6}(:[0-9]{1,4})?/)?[a-z0-9._-]{1,8}(/[a-z0-9._-]{1,8})?(:[\\w.-]{1,5})?") {
            let theirs = text.parse::<oci_client::Reference>();
            if let (Ok(ours), Ok(theirs)) = (text.parse::<Reference>(), &theirs) {
                // The library has no rule for upper-case hosts without a dot.
                if !text.split('/').next().is_some_and(|first| first.bytes().any(|b| b.is_ascii_uppercase())) {
                    prop_assert_eq!(ours.to_string(), theirs.whole());
                }
            }
        }

        #[test]
        fn a_complete_name_stays_as_it_is(text in "[a-z.:/@\\[\\]0-9_-]{1,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
            }
        }
    }
}
