//! Flags over variables over file over defaults, and the checks after which the code may rely on the result.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::file::{self, File};
use super::{CgroupDriver, Config, ConfigError, Environment, Flags, defaults};

/// Longest path of a unix socket (`sun_path` without its final NUL, unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;

/// Puts it all together.
pub fn resolve(flags: &Flags, env: &Environment) -> Result<Config, ConfigError> {
    let named = path_of(env, flags.config.as_ref(), "CRICKET_CONFIG");
    let path = named.clone().unwrap_or_else(|| defaults::config_file(env));
    let file = file::read(&path, named.is_some())?;
    check(merge(flags, env, file, &path)?)
}

fn merge(flags: &Flags, env: &Environment, file: File, path: &Path) -> Result<Config, ConfigError> {
    let pick = |flag: &Option<PathBuf>, variable: &str, key: &str, in_file: Option<PathBuf>| match path_of(
        env,
        flag.as_ref(),
        variable,
    ) {
        Some(path) => Ok(Some(path)),
        None => in_file.map(|value| absolute(value, path, key)).transpose(),
    };
    let root = pick(&flags.root, "CRICKET_ROOT", "root", file.root)?;
    let state = pick(&flags.state, "CRICKET_STATE", "state", file.state)?;
    let socket = pick(&flags.socket, "CRICKET_SOCKET", "socket", file.socket)?;
    let state = state.map_or_else(|| defaults::state(env), Ok)?;
    let registry = pick(&None, "CRICKET_REGISTRY_CONFIG_PATH", "registry.config_path", file.registry.config_path)?;
    let cni_config = pick(&None, "CRICKET_CNI_CONFIG_DIR", "network.cni_config_dir", file.network.cni_config_dir)?;
    let log_level = flags.log_level.clone().or_else(|| env.variable("CRICKET_LOG_LEVEL").map(str::to_owned));
    Ok(Config {
        root: root.map_or_else(|| defaults::root(env), Ok)?,
        socket: socket.unwrap_or_else(|| state.join("cricket.sock")),
        state,
        log_level: log_level.or(file.log_level).unwrap_or_else(|| defaults::LOG_LEVEL.to_owned()),
        registry_config_path: registry.unwrap_or_else(|| defaults::registry_config_path(env)),
        cgroup_driver: cgroup_driver(env)?.or(file.cgroup_driver).unwrap_or(CgroupDriver::Cgroupfs),
        streaming_address: parsed(env, "CRICKET_STREAMING_ADDRESS", "an address such as 127.0.0.1:0")?
            .or(file.streaming.address)
            .unwrap_or(defaults::STREAMING_ADDRESS),
        cni_config_dir: cni_config.unwrap_or_else(|| defaults::cni_config_dir(env)),
        cni_plugin_dirs: plugin_dirs(env, file.network.cni_plugin_dirs, path)?,
        host_loopback: parsed(env, "CRICKET_HOST_LOOPBACK", "true or false")?
            .or(file.network.host_loopback)
            .unwrap_or(false),
        pod_cidrs: words(env, "CRICKET_POD_CIDRS", ',')
            .or(file.network.pod_cidrs)
            .unwrap_or_else(|| defaults::POD_CIDRS.map(str::to_owned).to_vec()),
    })
}

/// A flag or a variable; relative to where the command was typed.
fn path_of(env: &Environment, flag: Option<&PathBuf>, variable: &str) -> Option<PathBuf> {
    let typed = flag.cloned().or_else(|| env.variable(variable).map(PathBuf::from))?;
    Some(env.working_dir.join(typed))
}

/// A path in a file has no place to be relative to.
fn absolute(value: PathBuf, file: &Path, key: &str) -> Result<PathBuf, ConfigError> {
    if value.is_absolute() {
        return Ok(value);
    }
    let message = format!("{value:?} is not an absolute path");
    Err(ConfigError::Value { origin: format!("{}, key {key}", file.display()), message })
}

fn plugin_dirs(env: &Environment, in_file: Option<Vec<PathBuf>>, file: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    if let Some(typed) = words(env, "CRICKET_CNI_PLUGIN_DIRS", ':') {
        return Ok(typed.into_iter().map(|dir| env.working_dir.join(dir)).collect());
    }
    let Some(dirs) = in_file else { return Ok(defaults::cni_plugin_dirs()) };
    dirs.into_iter().map(|dir| absolute(dir, file, "network.cni_plugin_dirs")).collect()
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
fn check(config: Config) -> Result<Config, ConfigError> {
    let wrong = |origin: &str, message: String| Err(ConfigError::Value { origin: origin.to_owned(), message });
    if config.root == config.state {
        return wrong("root", format!("{:?} is also the state directory: two directories are needed", config.root));
    }
    if config.socket.as_os_str().len() > SOCKET_PATH_LIMIT {
        let message = format!("{:?} is longer than the {SOCKET_PATH_LIMIT} bytes of a socket's path", config.socket);
        return wrong("socket", message);
    }
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log_level) {
        return wrong("log_level", format!("{:?} is not a filter such as info or debug: {error}", config.log_level));
    }
    if let Some(bad) = config.pod_cidrs.iter().find(|cidr| !is_cidr(cidr)) {
        return wrong("pod_cidrs", format!("{bad:?} is not a range such as 10.85.0.0/16"));
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
