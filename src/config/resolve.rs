//! Flags over variables over file over defaults, and the checks after which the code may rely on the result.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::{self, File};
use super::{CgroupDriver, Config, ConfigError, Environment, Flags, SignatureRule, defaults};

/// Longest path of a unix socket (`sun_path` without its final NUL, unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;

/// Puts it all together.
pub fn resolve(flags: &Flags, env: &Environment) -> Result<Config, ConfigError> {
    let named = path_of(env, flags.config.as_ref(), "CRICKET_CONFIG");
    let path = named.clone().unwrap_or_else(|| defaults::config_file(env));
    let file = file::read(&path, named.is_some())?;
    let origins = Origins { flags, env, file: &path, lines: file.lines.clone() };
    check(merge(flags, env, file, &origins)?, &origins)
}

/// Where a value was typed, for the message that refuses it.
struct Origins<'a> {
    flags: &'a Flags,
    env: &'a Environment,
    file: &'a Path,
    lines: BTreeMap<String, usize>,
}

impl Origins<'_> {
    /// Of the value that won: the flag, the variable, or the key with its file and line.
    fn of(&self, key: &str) -> String {
        let (flag, typed) = match key {
            "root" => ("--root", self.flags.root.as_deref().and_then(Path::to_str)),
            "state" => ("--state", self.flags.state.as_deref().and_then(Path::to_str)),
            "socket" => ("--socket", self.flags.socket.as_deref().and_then(Path::to_str)),
            "log_level" => ("--log-level", self.flags.log_level.as_deref()),
            _ => ("", None),
        };
        let variable = variable_of(key);
        match (typed, self.env.variable(&variable)) {
            // The command line hands a variable on as if it were the flag.
            (Some(typed), value) if value != Some(typed) => flag.to_owned(),
            (_, Some(_)) => variable,
            _ => self.in_file(key),
        }
    }

    fn in_file(&self, key: &str) -> String {
        match self.lines.get(key) {
            Some(line) => format!("{}, line {line}, key {key}", self.file.display()),
            None => format!("{key} (by default)"),
        }
    }
}

/// `network.pod_cidrs` is `CRICKET_POD_CIDRS`: tables are not said, but for the registry's.
fn variable_of(key: &str) -> String {
    let name = match key.split_once('.') {
        Some(("registry", name @ "short_names")) => name.to_owned(),
        Some(("registry", _)) => key.replace('.', "_"),
        Some(("streaming", _)) => key.replace('.', "_"),
        Some((_, name)) => name.to_owned(),
        None => key.to_owned(),
    };
    format!("CRICKET_{}", name.to_uppercase())
}

fn merge(flags: &Flags, env: &Environment, file: File, origins: &Origins) -> Result<Config, ConfigError> {
    let pick = |flag: &Option<PathBuf>, variable: &str, key: &str, in_file: Option<PathBuf>| match path_of(
        env,
        flag.as_ref(),
        variable,
    ) {
        Some(path) => Ok(Some(path)),
        None => in_file.map(|value| absolute(value, origins, key)).transpose(),
    };
    let root = pick(&flags.root, "CRICKET_ROOT", "root", file.root)?;
    let state = pick(&flags.state, "CRICKET_STATE", "state", file.state)?;
    let socket = pick(&flags.socket, "CRICKET_SOCKET", "socket", file.socket)?;
    let state = state.map_or_else(|| defaults::state(env), Ok)?;
    let registry = pick(&None, "CRICKET_REGISTRY_CONFIG_PATH", "registry.config_path", file.registry.config_path)?;
    let cni_config = pick(&None, "CRICKET_CNI_CONFIG_DIR", "network.cni_config_dir", file.network.cni_config_dir)?;
    let log_level = flags.log_level.clone().or_else(|| env.variable("CRICKET_LOG_LEVEL").map(str::to_owned));
    let root = root.map_or_else(|| defaults::root(env), Ok)?;
    let share = defaults::share(&root, env);
    Ok(Config {
        root,
        socket: socket.unwrap_or_else(|| state.join("cricket.sock")),
        state,
        log_level: log_level.or(file.log_level).unwrap_or_else(|| defaults::LOG_LEVEL.to_owned()),
        registry_config_path: registry.unwrap_or_else(|| defaults::registry_config_path(env)),
        short_names: env
            .variable("CRICKET_SHORT_NAMES")
            .map(str::to_owned)
            .or(file.registry.short_names)
            .unwrap_or_else(|| defaults::SHORT_NAMES.to_owned()),
        pinned_images: words(env, "CRICKET_PINNED_IMAGES", ',').or(file.images.pinned).unwrap_or_default(),
        keep_blobs: parsed(env, "CRICKET_KEEP_BLOBS", "true or false")?.or(file.images.keep_blobs).unwrap_or(false),
        fuse_overlayfs: env
            .variable("CRICKET_FUSE_OVERLAYFS")
            .map(PathBuf::from)
            .or(file.images.fuse_overlayfs)
            .unwrap_or_else(|| defaults::FUSE_OVERLAYFS.into()),
        policy: policy(file.policy, origins)?,
        cgroup_driver: cgroup_driver(env)?.or(file.cgroup_driver).unwrap_or(CgroupDriver::Cgroupfs),
        streaming_address: parsed(env, "CRICKET_STREAMING_ADDRESS", "an address such as 127.0.0.1:0")?
            .or(file.streaming.address)
            .unwrap_or(defaults::STREAMING_ADDRESS),
        cni_config_dir: cni_config.unwrap_or_else(|| defaults::cni_config_dir(env)),
        cni_plugin_dirs: {
            let in_file = file.network.cni_plugin_dirs;
            directories(env, "CRICKET_CNI_PLUGIN_DIRS", in_file, origins, "network.cni_plugin_dirs")?
                .unwrap_or_else(defaults::cni_plugin_dirs)
        },
        cni_timeout: seconds(
            parsed(env, "CRICKET_CNI_TIMEOUT_SECONDS", "a number of seconds above 0")?
                .or(file.network.cni_timeout_seconds)
                .unwrap_or(defaults::CNI_TIMEOUT_SECONDS),
        ),
        host_loopback: parsed(env, "CRICKET_HOST_LOOPBACK", "true or false")?
            .or(file.network.host_loopback)
            .unwrap_or(false),
        network_name: share.name,
        pod_cidrs: words(env, "CRICKET_POD_CIDRS", ',').or(file.network.pod_cidrs).unwrap_or(share.pod_cidrs),
        cdi_spec_dirs: directories(env, "CRICKET_CDI_SPEC_DIRS", file.cdi.spec_dirs, origins, "cdi.spec_dirs")?
            .unwrap_or_else(defaults::cdi_spec_dirs),
        metrics_address: parsed(env, "CRICKET_METRICS_ADDRESS", "an address such as 127.0.0.1:9586")?
            .or(file.metrics.address),
        runtimes: super::runtimes::check(file.runtimes, |key| origins.in_file(key))?,
    })
}

/// A flag or a variable; relative to where the command was typed.
fn path_of(env: &Environment, flag: Option<&PathBuf>, variable: &str) -> Option<PathBuf> {
    let typed = flag.cloned().or_else(|| env.variable(variable).map(PathBuf::from))?;
    Some(env.working_dir.join(typed))
}

/// A path in a file has no place to be relative to.
fn absolute(value: PathBuf, origins: &Origins, key: &str) -> Result<PathBuf, ConfigError> {
    if value.is_absolute() {
        return Ok(value);
    }
    let message = format!("{value:?} is not an absolute path");
    Err(ConfigError::Value { origin: origins.in_file(key), message })
}

/// A list of them: in a variable separated by colons.
fn directories(
    env: &Environment,
    variable: &str,
    in_file: Option<Vec<PathBuf>>,
    origins: &Origins,
    key: &str,
) -> Result<Option<Vec<PathBuf>>, ConfigError> {
    if let Some(typed) = words(env, variable, ':') {
        return Ok(Some(typed.into_iter().map(|dir| env.working_dir.join(dir)).collect()));
    }
    in_file.map(|dirs| dirs.into_iter().map(|dir| absolute(dir, origins, key)).collect()).transpose()
}

fn policy(in_file: BTreeMap<String, file::Policy>, origins: &Origins) -> Result<Vec<SignatureRule>, ConfigError> {
    let rule = |(scope, policy): (String, file::Policy)| {
        let key = format!("policy.{scope}");
        // A rule that says nothing would be taken for one that asks for a signature.
        if policy.accept != policy.keys.is_empty() {
            let message = "either keys or accept = true is expected".to_owned();
            return Err(ConfigError::Value { origin: origins.in_file(&key), message });
        }
        let keys = policy.keys.into_iter().map(|path| absolute(path, origins, &key)).collect::<Result<_, _>>()?;
        Ok(SignatureRule { scope: scope.trim_end_matches('/').to_owned(), keys })
    };
    in_file.into_iter().map(rule).collect()
}

fn words(env: &Environment, variable: &str, separator: char) -> Option<Vec<String>> {
    let value = env.variable(variable)?;
    Some(value.split(separator).map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

fn parsed<T: std::str::FromStr>(env: &Environment, variable: &str, expected: &str) -> Result<Option<T>, ConfigError> {
    let Some(value) = env.variable(variable) else { return Ok(None) };
    let message = || format!("{value:?} is not {expected}");
    value.parse().map(Some).map_err(|_| ConfigError::Value { origin: variable.to_owned(), message: message() })
}

fn seconds(count: NonZeroU32) -> Duration {
    Duration::from_secs(count.get().into())
}

fn cgroup_driver(env: &Environment) -> Result<Option<CgroupDriver>, ConfigError> {
    match env.variable("CRICKET_CGROUP_DRIVER") {
        None => Ok(None),
        Some("cgroupfs") => Ok(Some(CgroupDriver::Cgroupfs)),
        Some("systemd") => Ok(Some(CgroupDriver::Systemd)),
        Some(other) => {
            let message = format!("{other:?} is not a cgroup driver: cgroupfs or systemd is expected");
            Err(ConfigError::Value { origin: "CRICKET_CGROUP_DRIVER".to_owned(), message })
        }
    }
}

/// What types cannot say.
fn check(config: Config, origins: &Origins) -> Result<Config, ConfigError> {
    let wrong = |key: &str, message: String| Err(ConfigError::Value { origin: origins.of(key), message });
    if config.root == config.state {
        return wrong("root", format!("{:?} is also the state directory: two directories are needed", config.root));
    }
    if config.socket.as_os_str().len() > SOCKET_PATH_LIMIT {
        let message = format!("{:?} is longer than the {SOCKET_PATH_LIMIT} bytes of a socket's path", config.socket);
        return wrong("socket", message);
    }
    // A single word would be taken for a module, of which there is none, and nothing would be logged.
    let word = config.log_level.trim();
    if !word.contains(['=', ',', ':', '[']) && word.parse::<tracing_subscriber::filter::LevelFilter>().is_err() {
        return wrong("log_level", format!("{word:?} is none of off, error, warn, info, debug and trace"));
    }
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log_level) {
        return wrong("log_level", format!("{:?} is not a filter such as info or debug: {error}", config.log_level));
    }
    if config.short_names.contains(['/', '@']) || config.short_names.contains(char::is_whitespace) {
        return wrong("registry.short_names", format!("{:?} is not a registry such as docker.io", config.short_names));
    }
    if let Some(bad) = config.pod_cidrs.iter().find(|cidr| !is_cidr(cidr)) {
        return wrong("network.pod_cidrs", format!("{bad:?} is not a range such as 10.85.0.0/16"));
    }
    let of_one_family = |v6: bool| config.pod_cidrs.iter().filter(|cidr| cidr.contains(':') == v6).count();
    if of_one_family(false) > 1 || of_one_family(true) > 1 {
        let message = format!("{:?} has two ranges of one family: one of each is expected", config.pod_cidrs);
        return wrong("network.pod_cidrs", message);
    }
    Ok(config)
}

fn is_cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else { return false };
    let Ok(prefix) = prefix.parse::<u8>() else { return false };
    match address.parse() {
        Ok(IpAddr::V4(_)) => prefix <= 32,
        Ok(IpAddr::V6(_)) => prefix <= 128,
        Err(_) => false,
    }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
