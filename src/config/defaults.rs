//! Where things go when nobody says: the XDG directories for a user, /run and /var/lib for root.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{ConfigError, Environment};

/// Our name below the directories of others.
const NAME: &str = "cricket";

/// Pod addresses of the built-in network: a private range, and a unique local one (RFC 4193).
const POD_CIDRS: [&str; 2] = ["10.85.0.0/16", "fd85:ee78:d8a6:8607::/64"];

/// What Docker users mean by `busybox`.
pub const SHORT_NAMES: &str = "docker.io";

/// Stacks layers where the kernel does not: looked up in PATH.
pub const FUSE_OVERLAYFS: &str = "fuse-overlayfs";

/// Below what a kubelet gives RunPodSandbox, so that it hears why.
pub const CNI_TIMEOUT_SECONDS: NonZeroU32 = NonZeroU32::new(60).expect("it is not zero");

/// What is logged unless asked otherwise.
pub const LOG_LEVEL: &str = "info";

/// Loopback only; the kernel picks the port.
pub const STREAMING_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Disk.
pub fn root(env: &Environment) -> Result<PathBuf, ConfigError> {
    if env.uid == 0 {
        return Ok(Path::new("/var/lib").join(NAME));
    }
    let data = env.directory("XDG_DATA_HOME").or_else(|| Some(home(env)?.join(".local/share")));
    Ok(data.ok_or(ConfigError::NoHome)?.join(NAME))
}

/// Run time. The last resort is in /tmp, where anyone may have been first: its owner is checked.
pub fn state(env: &Environment) -> Result<PathBuf, ConfigError> {
    if env.uid == 0 {
        return Ok(Path::new("/run").join(NAME));
    }
    if let Some(dir) = env.directory("XDG_RUNTIME_DIR").or_else(|| env.user_run_dir.clone()) {
        return Ok(dir.join(NAME));
    }
    let dir = PathBuf::from(format!("/tmp/{NAME}-{}", env.uid));
    match owner(&dir) {
        Some(owner) if owner != env.uid => Err(ConfigError::ForeignDirectory { path: dir, owner }),
        _ => Ok(dir),
    }
}

/// `/etc` for root, `$XDG_CONFIG_HOME` for a user without which there is none.
fn config_home(env: &Environment) -> PathBuf {
    if env.uid == 0 {
        return PathBuf::from("/etc");
    }
    env.directory("XDG_CONFIG_HOME").or_else(|| Some(home(env)?.join(".config"))).unwrap_or_else(|| "/etc".into())
}

/// The file that is read when none is named.
pub fn config_file(env: &Environment) -> PathBuf {
    config_home(env).join(NAME).join("cricket.toml")
}

/// Mirror rules. A user without a directory of his own has the machine's.
pub fn registry_config_path(env: &Environment) -> PathBuf {
    let own = config_home(env).join(NAME).join("certs.d");
    if env.uid == 0 || own.is_dir() {
        return own;
    }
    Some(PathBuf::from("/etc").join(NAME).join("certs.d")).filter(|dir| dir.is_dir()).unwrap_or(own)
}

/// What a daemon has of a network namespace in which others may be too.
pub struct Share {
    /// See [`super::Config::network_name`].
    pub name: String,
    /// See [`super::Config::pod_cidrs`].
    pub pod_cidrs: Vec<String>,
}

/// That of the default root, or one that follows from the root: `10.88.0.0/13` has 128 ranges of 4094 pods. An ordinary
/// user's daemon makes its node, in which nobody else is.
pub fn share(root: &Path, env: &Environment) -> Share {
    if env.uid != 0 || self::root(env).is_ok_and(|default| default == root) {
        return Share { name: NAME.to_owned(), pod_cidrs: POD_CIDRS.map(str::to_owned).to_vec() };
    }
    let digest = Sha256::digest(root.as_os_str().as_bytes());
    let [first, second, third, range, subnet @ ..] = digest.first_chunk::<6>().expect("a digest has 32 bytes");
    let (high, low) = (88 + (range >> 4 & 7), range << 4);
    let pod_cidrs =
        vec![format!("10.{high}.{low}.0/20"), format!("fd85:ee78:d8a6:{:x}::/64", u16::from_be_bytes(*subnet))];
    Share { name: format!("{NAME}-{first:02x}{second:02x}{third:02x}"), pod_cidrs }
}

/// CNI configurations.
pub fn cni_config_dir(env: &Environment) -> PathBuf {
    config_home(env).join("cni/net.d")
}

/// CNI plugins.
pub fn cni_plugin_dirs() -> Vec<PathBuf> {
    ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from).to_vec()
}

/// Specifications of CDI devices, as the CDI has it.
pub fn cdi_spec_dirs() -> Vec<PathBuf> {
    ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).to_vec()
}

fn home(env: &Environment) -> Option<PathBuf> {
    env.directory("HOME")
}

/// Who owns what is really at `path`; a symbolic link counts as itself.
pub fn owner(path: &Path) -> Option<u32> {
    std::fs::symlink_metadata(path).ok().map(|metadata| metadata.uid())
}
