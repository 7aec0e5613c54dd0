//! Versions of the CNI specification.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One that was released. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Version {
    /// What a configuration without a version means.
    V0_1_0,
    /// VERSION.
    V0_2_0,
    /// Chains; lists of interfaces and addresses.
    V0_3_0,
    /// A correction of 0.3.0.
    V0_3_1,
    /// CHECK; DEL is given the result.
    V0_4_0,
    /// Addresses no longer say their family.
    V1_0_0,
    /// GC and STATUS.
    V1_1_0,
}

impl Version {
    /// Oldest first.
    const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest that is known here.
    pub const NEWEST: Self = Self::V1_1_0;

    fn text(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::V0_1_0);
        }
        Self::ALL.into_iter().find(|version| version.text() == text).ok_or_else(|| {
            let shown: String = text.chars().take(20).collect();
            format!("{shown:?} is no version of CNI that is known here (0.1.0 to {})", Self::NEWEST)
        })
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.text().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_ordered_and_unknown_ones_refused() {
        assert!("0.4.0".parse::<Version>() > "0.3.1".parse());
        assert_eq!("".parse(), Ok(Version::V0_1_0));
        for bad in ["1.2.0", "1.1", "v1.0.0", "0.3.2"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }
}
