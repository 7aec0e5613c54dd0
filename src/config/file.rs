//! `cricket.toml` as typed: every key optional, unknown ones refused with their line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{CgroupDriver, ConfigError, RuntimeHandlers};

/// Largest configuration that is read; a larger file is not one.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub root: Option<PathBuf>,
    pub state: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub log_level: Option<String>,
    pub cgroup_driver: Option<CgroupDriver>,
    #[serde(default)]
    pub registry: Registry,
    #[serde(default)]
    pub images: Images,
    #[serde(default)]
    pub policy: BTreeMap<String, Policy>,
    #[serde(default)]
    pub streaming: Streaming,
    #[serde(default)]
    pub network: Network,
    /// Where each key stands: `network.pod_cidrs` and its line, from 1.
    #[serde(skip)]
    pub lines: BTreeMap<String, usize>,
    #[serde(default)]
    pub cdi: Cdi,
    #[serde(default)]
    pub metrics: Metrics,
    #[serde(default)]
    pub runtimes: RuntimeHandlers,
}

/// `[registry]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    pub config_path: Option<PathBuf>,
    pub short_names: Option<String>,
}

/// `[images]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    pub pinned: Option<Vec<String>>,
    pub keep_blobs: Option<bool>,
    pub fuse_overlayfs: Option<PathBuf>,
}

/// `[policy."registry.example/team"]`: one of the two.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    #[serde(default)]
    pub keys: Vec<PathBuf>,
    #[serde(default)]
    pub accept: bool,
}

/// `[streaming]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Streaming {
    pub address: Option<SocketAddr>,
}

/// `[cdi]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cdi {
    pub spec_dirs: Option<Vec<PathBuf>>,
}

/// `[metrics]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    pub address: Option<SocketAddr>,
}

/// `[network]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    pub cni_config_dir: Option<PathBuf>,
    pub cni_plugin_dirs: Option<Vec<PathBuf>>,
    pub cni_timeout_seconds: Option<NonZeroU32>,
    pub pod_cidrs: Option<Vec<String>>,
    pub host_loopback: Option<bool>,
}

/// Reads `path`. That there is none is fine unless it was `named` by the user.
pub fn read(path: &Path, named: bool) -> Result<File, ConfigError> {
    let unreadable = |source| ConfigError::Read { path: path.to_owned(), source };
    let metadata = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !named => return Ok(File::default()),
        other => other.map_err(unreadable)?,
    };
    // A FIFO or a device would block or never end.
    if !metadata.is_file() || metadata.len() > FILE_LIMIT_BYTES {
        let message = format!("not a regular file of at most {FILE_LIMIT_BYTES} bytes");
        return Err(unreadable(std::io::Error::other(message)));
    }
    parse(path, &std::fs::read_to_string(path).map_err(unreadable)?)
}

/// Understands the text of a configuration; `path` is only for messages.
pub fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let wrong = |error: toml::de::Error| ConfigError::Parse {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| line_of(text, span.start)),
        message: error.message().lines().collect::<Vec<_>>().join(" "),
    };
    let mut file: File = toml::from_str(text).map_err(wrong)?;
    let table = toml::de::DeTable::parse(text).map_err(wrong)?;
    note_lines(table.get_ref(), "", text, &mut file.lines);
    Ok(file)
}

fn note_lines(table: &toml::de::DeTable, prefix: &str, text: &str, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        lines.insert(name.clone(), line_of(text, key.span().start));
        if let toml::de::DeValue::Table(inner) = value.get_ref() {
            note_lines(inner, &format!("{name}."), text, lines);
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let cases = [
            ("root = \"/a\"\nrot = \"/b\"", 2, "unknown field `rot`"),
            ("\n\n[registry]\nconfig = \"/x\"", 4, "unknown field `config`"),
            ("cgroup_driver = \"fs\"", 1, "unknown variant `fs`"),
            ("root = 7", 1, "expected"),
            ("root = \"/a", 1, ""),
            ("[streaming]\naddress = \"localhost\"", 2, ""),
        ];
        for (text, expected_line, expected) in cases {
            let error = parse(Path::new("/c.toml"), text).expect_err(text);
            let ConfigError::Parse { line, message, .. } = &error else { panic!("{error}") };
            assert_eq!(*line, expected_line, "{text}: {error}");
            assert!(message.contains(expected), "{text}: {error}");
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn a_file_that_was_not_named_may_be_missing() {
        assert!(read(Path::new("/nowhere/cricket.toml"), false).is_ok());
        assert!(matches!(read(Path::new("/nowhere/cricket.toml"), true), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn a_device_is_not_a_configuration() {
        assert!(matches!(read(Path::new("/dev/zero"), true), Err(ConfigError::Read { .. })));
    }

    /// The example has every key commented out as `#key = value`; documentation begins with `# `.
    #[test]
    fn the_example_names_every_key_and_is_understood() {
        let example = include_str!("../../dist/cricket.toml");
        parse(Path::new("as shipped"), example).expect("the example as shipped");
        let text: Vec<&str> = example
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => setting,
                _ => line,
            })
            .collect();
        let file = parse(Path::new("uncommented"), &text.join("\n")).expect("the example with every key set");
        assert!(file.root.is_some() && file.state.is_some() && file.socket.is_some());
        assert!(file.log_level.is_some() && file.cgroup_driver.is_some());
        assert!(file.registry.config_path.is_some() && file.streaming.address.is_some());
        assert!(file.registry.short_names.is_some() && file.images.pinned.is_some());
        assert!(file.images.fuse_overlayfs.is_some() && file.images.keep_blobs.is_some());
        assert!(
            file.metrics.address.is_some() && file.cdi.spec_dirs.is_some() && file.runtimes.contains_key("example")
        );
        let example = &file.runtimes["example"];
        assert!(example.base_spec.is_some() && example.seccomp.is_some() && !example.limits.is_empty());
        let network = file.network;
        assert!(network.cni_config_dir.is_some() && network.cni_plugin_dirs.is_some() && network.pod_cidrs.is_some());
        assert!(network.cni_timeout_seconds.is_some());
        assert!(network.host_loopback.is_some());
    }
}
