//! A network configuration: a chain of plugins, read from a file that an administrator or an installer wrote.
//!
//! As the peers have it: of the files `.conflist`, `.conf` and `.json` in the directory the first by name counts; a
//! `.conflist` is a chain, the others are one plugin each. A list that does not say `loadOnlyInlinedPlugins` is
//! followed by the plugins of `NAME/*.conf`. A first file that cannot be understood is an error, never a reason to take
//! the second. The files are read anew whenever the configuration is asked for: a change is seen at once, and nothing
//! has to watch.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::CniError;
use super::version::Version;

/// Largest file that is read.
const FILE_LIMIT_BYTES: u64 = 1 << 20;
/// Longest chain.
const PLUGINS_LIMIT: usize = 64;
/// Longest name of a network or a plugin.
const NAME_LIMIT_BYTES: usize = 128;

/// A network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkList {
    /// Its name.
    pub name: String,
    /// Of the specification, for all plugins.
    #[serde(rename = "cniVersion")]
    pub version: Version,
    /// CHECK is not wanted.
    #[serde(rename = "disableCheck", default)]
    pub disable_check: bool,
    /// GC is not wanted.
    #[serde(rename = "disableGC", default)]
    pub disable_gc: bool,
    /// In the order of ADD.
    pub plugins: Vec<Plugin>,
}

/// One of a chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// The program's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The rest of its configuration, as written.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Plugin {
    /// Whether it takes this capability argument.
    pub fn takes(&self, capability: &str) -> bool {
        self.rest.get("capabilities").and_then(|all| all.get(capability)).and_then(Value::as_bool).unwrap_or(false)
    }
}

/// The network that the directory configures; none where it has no file, or is not there.
pub fn find(directory: &Path) -> Result<Option<NetworkList>, CniError> {
    let first = files(directory, &["conf", "conflist", "json"])?.into_iter().next();
    first.map(|file| read_list(directory, &file).map_err(wrong(&file))).transpose()
}

fn wrong(path: &Path) -> impl FnOnce(String) -> CniError {
    let path = path.to_owned();
    move |problem| CniError::Configuration { path, problem }
}

/// By name.
fn files(directory: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, CniError> {
    let listed = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(|error| wrong(directory)(format!("it cannot be listed: {error}; `network.cni_config_dir` (CRICKET_CNI_CONFIG_DIR) names another, one that is not there means the built-in network")))?,
    };
    let wanted = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extensions.contains(&extension)) && !path.is_dir()
    };
    let mut found: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).filter(wanted).collect();
    found.sort();
    Ok(found)
}

/// A regular file's JSON; links are followed, for a mounted ConfigMap is one.
fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let unreadable = |error: std::io::Error| format!("it cannot be read: {error}");
    // NONBLOCK: a FIFO must not hold whoever asks.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_LIMIT_BYTES {
        return Err(format!("it is larger than {FILE_LIMIT_BYTES} bytes"));
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("it is not a JSON object: {error}"))
}

fn read_list(directory: &Path, path: &Path) -> Result<NetworkList, String> {
    let mut document = read(path)?;
    if path.extension().is_none_or(|extension| extension != "conflist") {
        return single(document);
    }
    let name = text(&document, "name")?;
    check_name("name", &name)?;
    let mut plugins = match document.remove("plugins") {
        None => Vec::new(),
        Some(Value::Array(plugins)) => plugins.into_iter().map(plugin).collect::<Result<Vec<_>, _>>()?,
        Some(_) => return Err("\"plugins\" is not a list".to_owned()),
    };
    if !flag(&document, "loadOnlyInlinedPlugins")? {
        for file in files(&directory.join(&name), &["conf"]).map_err(|error| error.to_string())? {
            let of_file = |problem: String| format!("{}: {problem}", file.display());
            plugins.push(read(&file).and_then(|document| plugin(Value::Object(document))).map_err(of_file)?);
        }
    }
    if plugins.is_empty() || plugins.len() > PLUGINS_LIMIT {
        return Err(format!("it has {} plugins: 1 to {PLUGINS_LIMIT} are expected", plugins.len()));
    }
    Ok(NetworkList {
        version: version(&document)?,
        disable_check: flag(&document, "disableCheck")?,
        disable_gc: flag(&document, "disableGC")?,
        name,
        plugins,
    })
}

/// A file of one plugin is a chain of one.
fn single(document: Map<String, Value>) -> Result<NetworkList, String> {
    if document.contains_key("plugins") {
        return Err("it is a list of plugins: its name must end in .conflist".to_owned());
    }
    let name = text(&document, "name")?;
    check_name("name", &name)?;
    let version = version(&document)?;
    let plugins = vec![plugin(Value::Object(document))?];
    Ok(NetworkList { name, version, disable_check: false, disable_gc: false, plugins })
}

fn plugin(value: Value) -> Result<Plugin, String> {
    let Value::Object(mut rest) = value else { return Err("a plugin is not a JSON object".to_owned()) };
    let kind = text(&rest, "type")?;
    check_name("type", &kind)?;
    rest.remove("type");
    Ok(Plugin { kind, rest })
}

fn text(document: &Map<String, Value>, key: &str) -> Result<String, String> {
    match document.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("\"{key}\" is not a text")),
        None => Err(format!("it has no \"{key}\"")),
    }
}

/// Also as a text, as some installers write it.
fn flag(document: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match document.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("\"{key}\" is {other}: true or false is expected")),
    }
}

/// The highest of `cniVersions` and `cniVersion` that is known here.
fn version(document: &Map<String, Value>) -> Result<Version, String> {
    let single = match document.get("cniVersion") {
        None => None,
        Some(Value::String(text)) => Some(text.parse::<Version>()),
        Some(_) => return Err("\"cniVersion\" is not a text".to_owned()),
    };
    let several = document.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    let known = several.filter_map(|one| one.as_str()?.parse::<Version>().ok()).max();
    match (single, known) {
        (Some(Ok(single)), known) => Ok(single.max(known.unwrap_or(single))),
        (_, Some(known)) => Ok(known),
        (Some(Err(error)), None) => Err(error),
        (None, None) => Ok(Version::V0_1_0),
    }
}

/// Names go into file names and environment variables.
fn check_name(key: &str, name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    match starts && name.len() <= NAME_LIMIT_BYTES && name.chars().all(plain) {
        true => Ok(()),
        false => {
            let shown: String = name.chars().take(40).collect();
            Err(format!(
                "\"{key}\" is {shown:?}: letters, digits, '_', '.' and '-' are expected, a letter or digit first"
            ))
        }
    }
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
