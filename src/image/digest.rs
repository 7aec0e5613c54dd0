//! Content digests: an algorithm of a short list and exactly its number of hexadecimal digits, nothing else.
//! Only a value of this type ever becomes part of a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Hash functions that name content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// 64 digits.
    Sha256,
    /// 128 digits.
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest: sha256 or sha512, a colon and the lower-case hexadecimal digits are expected")]
pub struct DigestError(String);

/// `sha256:…` or `sha512:…`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// Of a finished hash.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex.len(), algorithm.digits(), "a finished hash has its algorithm's length");
        Self { algorithm, hex }
    }

    /// Which hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits without the algorithm.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = || DigestError(text.chars().take(80).collect());
        let (name, hex) = text.split_once(':').ok_or_else(error)?;
        let algorithm =
            [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|a| a.name() == name).ok_or_else(error)?;
        let exact = hex.len() == algorithm.digits() && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if exact { Ok(Self { algorithm, hex: hex.to_owned() }) } else { Err(error()) }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn row_24_what_is_taken_for_a_digest_is_no_path(text in "(sha256|sha512|[a-z./]{0,8}):?[0-9a-fA-F./]{0,130}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
                prop_assert!(digest.hex().bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
    }

    #[test]
    fn only_exact_digests_are_taken() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(good.parse::<Digest>().expect("a digest").to_string(), good);
        let hex = "a".repeat(64);
        for bad in [
            "",
            "sha256:",
            "sha256:../../etc",
            &format!("md5:{hex}"),
            &format!("sha256:{hex}a"),
            &format!("SHA256:{hex}"),
            &format!("sha256:{}", "A".repeat(64)),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
    }
}
