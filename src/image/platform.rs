//! Operating system, architecture and variant: which of an index's images suits this machine, and how well.
//!
//! An amd64 processor runs the images of its own level and all below (v3 before v2 before the plain one), then those
//! for 386; an arm64 one runs arm64, then arm from v8 down to v5. Nothing else runs here.

use std::fmt;

use serde::Deserialize;

/// The only operating system of these containers.
const OS: &str = "linux";

/// As in an index; empty: not said.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// In Go's words: `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// `v3`.
    #[serde(default)]
    pub variant: String,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl Platform {
    /// This machine.
    pub fn host() -> Self {
        let architecture = go_architecture(std::env::consts::ARCH);
        Self { os: OS.to_owned(), architecture: architecture.to_owned(), variant: host_variant().to_owned() }
    }

    /// How well an image for `image` suits this machine: 0 is best; `None`: it does not run here.
    pub fn rank(&self, image: &Self) -> Option<u32> {
        if image.os != self.os {
            return None;
        }
        let wanted = image.normalised();
        self.runs().iter().position(|own| *own == wanted).and_then(|position| u32::try_from(position).ok())
    }

    /// All that this machine runs, best first, normalised.
    fn runs(&self) -> Vec<(String, String)> {
        let (architecture, variant) = self.normalised();
        let of = |architecture: &str, variants: &[&str]| -> Vec<(String, String)> {
            variants.iter().map(|variant| (architecture.to_owned(), (*variant).to_owned())).collect()
        };
        match (architecture.as_str(), variant.as_str()) {
            ("amd64", level) => {
                let levels = ["v4", "v3", "v2", ""];
                let first = levels.iter().position(|l| *l == level).unwrap_or(levels.len() - 1);
                [of("amd64", &levels[first..]), of("386", &[""])].concat()
            }
            ("arm64", _) => [of("arm64", &[&variant, "v8"]), of("arm", &["v8", "v7", "v6", "v5"])].concat(),
            ("arm", level) => {
                let levels = ["v8", "v7", "v6", "v5"];
                let first = levels.iter().position(|l| *l == level).unwrap_or(1);
                of("arm", &levels[first..])
            }
            _ => vec![(architecture, variant)],
        }
    }

    /// Other spellings and what an empty variant means.
    fn normalised(&self) -> (String, String) {
        let architecture = go_architecture(&self.architecture);
        let variant = match (architecture, self.variant.as_str()) {
            ("amd64", "v1") => "",
            ("arm64", "" | "8") => "v8",
            ("arm", "") => "v7",
            ("arm", "5") => "v5",
            ("arm", "6") => "v6",
            ("arm", "7") => "v7",
            ("arm", "8") => "v8",
            (_, other) => other,
        };
        (architecture.to_owned(), variant.to_owned())
    }
}

/// Other names of the architectures, in Go's words.
fn go_architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "x86" | "i386" | "i686" => "386",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// The level of an x86-64 processor, of the psABI's list.
#[cfg(target_arch = "x86_64")]
fn host_variant() -> &'static str {
    macro_rules! has {
        ($($feature:tt),+) => { $(std::arch::is_x86_feature_detected!($feature))&&+ };
    }
    let v2 = has!("cmpxchg16b", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2");
    let v3 = v2 && has!("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave");
    let v4 = v3 && has!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => "v4",
        (_, true, _) => "v3",
        (true, _, _) => "v2",
        _ => "",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> &'static str {
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }
    }

    #[test]
    fn the_nearest_variant_below_wins() {
        for (host, offered, best) in [
            ("linux/amd64/v3", "linux/amd64 linux/amd64/v2 linux/amd64/v3 linux/amd64/v4", Some("linux/amd64/v3")),
            ("linux/amd64/v3", "linux/amd64/v4 linux/amd64/v1", Some("linux/amd64/v1")),
            ("linux/amd64", "linux/amd64/v2 linux/386", Some("linux/386")),
            ("linux/amd64/v4", "windows/amd64 linux/arm64", None),
            ("linux/amd64", "linux/x86_64", Some("linux/x86_64")),
            ("linux/arm64", "linux/arm/v7 linux/arm64/v8", Some("linux/arm64/v8")),
            ("linux/arm64", "linux/arm/v6 linux/arm/v7", Some("linux/arm/v7")),
            ("linux/arm64", "linux/arm64/v9", None),
            ("linux/arm/v6", "linux/arm/v7 linux/arm/v5", Some("linux/arm/v5")),
            ("linux/riscv64", "linux/amd64 linux/riscv64", Some("linux/riscv64")),
        ] {
            let host = platform(host);
            let chosen = offered
                .split(' ')
                .filter_map(|text| Some((host.rank(&platform(text))?, text)))
                .min_by_key(|(rank, _)| *rank)
                .map(|(_, text)| text);
            assert_eq!(chosen, best, "{host} of {offered}");
        }
    }

    #[test]
    fn this_machine_runs_its_own_architecture() {
        let host = Platform::host();
        assert!(host.rank(&Platform { variant: String::new(), ..host.clone() }).is_some(), "{host}");
    }
}
