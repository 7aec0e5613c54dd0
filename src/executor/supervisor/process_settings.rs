//! What an exec'd process takes over from its container: read from the bundle's config.json, of which only these parts
//! are looked at (an exec costs little because of that).

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Access, AtFlags, FileType};
use serde::Deserialize;

use super::fault::{Fault, Result};
use super::runtime::SPEC_FILE;

/// Longest config.json that is read.
const SPEC_LIMIT_BYTES: u64 = 16 << 20;
/// Where programs are looked for when the container has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `config.json`, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct Settings {
    /// Who and how.
    pub process: Process,
    /// Only whether there is a filter.
    #[serde(default)]
    pub linux: Linux,
}

/// `process`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Working directory.
    #[serde(default)]
    pub cwd: String,
    /// NAME=VALUE.
    #[serde(default)]
    pub env: Vec<String>,
    /// Ids.
    pub user: User,
    /// Names as CAP_X.
    pub capabilities: Option<Capabilities>,
    /// Limits.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// Absent is false.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// Name of a loaded profile.
    pub apparmor_profile: Option<String>,
}

/// `process.user`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode bits that new files lack.
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(default)]
    pub additional_gids: Vec<u32>,
}

/// `process.capabilities`; what is inherited is empty whatever the specification says.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// The most that can ever be had.
    pub bounding: Vec<String>,
    /// In force.
    pub effective: Vec<String>,
    /// To be had.
    pub permitted: Vec<String>,
    /// Kept by programs without capabilities of their own.
    pub ambient: Vec<String>,
}

/// `process.rlimits`.
#[derive(Debug, Deserialize)]
pub struct Rlimit {
    /// RLIMIT_X.
    #[serde(rename = "type")]
    pub name: String,
    /// Upper bound.
    pub hard: u64,
    /// In force.
    pub soft: u64,
}

/// `linux`.
#[derive(Debug, Default, Deserialize)]
pub struct Linux {
    /// Not looked into.
    pub seccomp: Option<serde::de::IgnoredAny>,
}

impl Settings {
    /// Of the container in `bundle`.
    pub fn read(bundle: &Path) -> Result<Self> {
        let path = bundle.join(SPEC_FILE);
        let mut text = String::new();
        File::open(&path)
            .and_then(|file| file.take(SPEC_LIMIT_BYTES).read_to_string(&mut text))
            .map_err(Fault::io(format!("cannot read {}", path.display())))?;
        serde_json::from_str(&text).map_err(Fault::because(format!("cannot understand {}", path.display())))
    }
}

/// PATH of an environment.
pub fn path_of(environment: &[String]) -> &str {
    environment.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH)
}

/// The file that a command names, looked for as a shell does, in the root and with the ids of this very process.
pub fn find_program(command: &[String], path: &str) -> Result<CString> {
    let name = command.first().filter(|name| !name.is_empty()).ok_or_else(|| Fault::invalid("the command is empty"))?;
    let candidates: Vec<String> = if name.contains('/') {
        vec![name.clone()]
    } else {
        path.split(':')
            .map(|directory| if directory.is_empty() { format!("./{name}") } else { format!("{directory}/{name}") })
            .collect()
    };
    let mut denied = None;
    for candidate in candidates {
        match is_program(&candidate) {
            Ok(true) => return CString::new(candidate).map_err(|_| Fault::invalid("the command holds a zero byte")),
            Ok(false) => denied = Some(candidate),
            Err(_) => {}
        }
    }
    Err(match denied {
        Some(file) => {
            Fault::image(format!("{file:?} of the image cannot be executed: it is not a program, or not for this user"))
        }
        None if name.contains('/') => Fault::image(format!("executable {name:?} not found in the image")),
        None => Fault::image(format!("executable {name:?} not found in the image's $PATH ({path})")),
    })
}

fn is_program(path: &str) -> rustix::io::Result<bool> {
    let stat = rustix::fs::stat(path)?;
    let executable = rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS);
    Ok(FileType::from_raw_mode(stat.st_mode).is_file() && executable.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_found_on_the_path_and_a_missing_one_is_named() {
        let find = |name: &str| find_program(&[name.to_owned()], "/nowhere:/bin");
        assert_eq!(find("sh").expect("there"), c"/bin/sh".to_owned());
        assert_eq!(find("/bin/sh").expect("there"), c"/bin/sh".to_owned());
        assert!(find("no-such-program").expect_err("missing").message.contains("no-such-program"));
        assert!(find("/etc/passwd").expect_err("no program").message.contains("cannot be executed"));
        assert!(find_program(&[], "/bin").is_err());
    }

    #[test]
    fn the_last_path_of_an_environment_counts() {
        let environment = ["PATH=/a", "X=1", "PATH=/b"].map(str::to_owned);
        assert_eq!(path_of(&environment), "/b");
        assert_eq!(path_of(&[]), DEFAULT_PATH);
    }

    #[test]
    fn settings_are_read_from_a_specification() {
        let text = r#"{"ociVersion":"1.2.0","process":{"user":{"uid":5,"gid":6,"additionalGids":[7]},"cwd":"/w",
            "args":["x"],"env":["A=b"],"noNewPrivileges":true,"rlimits":[{"type":"RLIMIT_NOFILE","hard":5,"soft":4}]},
            "linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}}"#;
        let settings: Settings = serde_json::from_str(text).expect("read");
        assert_eq!((settings.process.user.uid, settings.process.user.additional_gids), (5, vec![7]));
        assert!(settings.process.no_new_privileges && settings.linux.seccomp.is_some());
    }
}
