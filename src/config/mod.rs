//! The configuration: `cricket.toml` as typed by the user, turned once into what the code may rely on.
//!
//! Precedence: flags, then `CRICKET_*` variables, then the file, then the defaults. Unknown keys are an error that
//! names the line. Every path in [`Config`] is absolute. `dist/cricket.toml` documents every key.
//!
//! Nothing is made here: who needs a directory makes it (`daemon::directories`).

mod defaults;
mod environment;
mod file;
mod resolve;
mod runtimes;

use std::path::PathBuf;
use std::time::Duration;

pub use defaults::FUSE_OVERLAYFS;
pub use environment::Environment;
pub use runtimes::{RuntimeHandler, RuntimeHandlers};

/// What the code may rely on.
#[derive(Debug, Clone)]
pub struct Config {
    /// Disk: images, layers, snapshots, records. `$XDG_DATA_HOME/cricket`, or `/var/lib/cricket` for root.
    pub root: PathBuf,
    /// Run time (tmpfs): sockets, bundles. `$XDG_RUNTIME_DIR/cricket`, or `/run/cricket` for root.
    pub state: PathBuf,
    /// The CRI socket. `STATE/cricket.sock`.
    pub socket: PathBuf,
    /// A `tracing` filter: `info`, `debug`, `cricket::image=trace`.
    pub log_level: String,
    /// Mirror rules: directory that holds `HOST/hosts.toml`. `/etc/cricket/certs.d` or
    /// `$XDG_CONFIG_HOME/cricket/certs.d`.
    pub registry_config_path: PathBuf,
    /// The registry that completes image names without one; empty: such names are not pulled. `docker.io`.
    pub short_names: String,
    /// Names of images that nothing removes.
    pub pinned_images: Vec<String>,
    /// Whether compressed blobs are kept, so that images are saved as they came. No.
    pub keep_blobs: bool,
    /// The program that stacks layers where the kernel does not; empty: none.
    pub fuse_overlayfs: PathBuf,
    /// Which images must be signed; none: every image is taken.
    pub policy: Vec<SignatureRule>,
    /// Which cgroup driver kubelets are told to use.
    pub cgroup_driver: CgroupDriver,
    /// `127.0.0.1:0`: where exec, attach and port-forward sessions are served.
    pub streaming_address: std::net::SocketAddr,
    /// CNI configurations. `/etc/cni/net.d` or `$XDG_CONFIG_HOME/cni/net.d`.
    pub cni_config_dir: PathBuf,
    /// CNI plugins. `/opt/cni/bin`, `/usr/lib/cni`.
    pub cni_plugin_dirs: Vec<PathBuf>,
    /// How long a CNI plugin may take.
    pub cni_timeout: Duration,
    /// Services at the host's loopback addresses are reached by pods of a made node.
    pub host_loopback: bool,
    /// Of the built-in network, where other daemons' may be: `cricket`, and another for each root that is not the
    /// default one.
    pub network_name: String,
    /// Pod addresses of the built-in network, until a kubelet names others.
    pub pod_cidrs: Vec<String>,
    /// Specifications of CDI devices; later ones go before earlier ones. `/etc/cdi`, `/var/run/cdi`.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Where the daemon's own metrics are served; none: nowhere.
    pub metrics_address: Option<std::net::SocketAddr>,
    /// What RuntimeClasses may name besides the default.
    pub runtimes: RuntimeHandlers,
}

/// Whose signature the images of a registry or a repository need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureRule {
    /// `registry.example`, `registry.example/team`, or `*` for every image. The longest one that fits decides.
    pub scope: String,
    /// Public keys, one of which must have signed; none: images are taken without a signature.
    pub keys: Vec<PathBuf>,
}

/// Who makes the cgroups of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// Directories in the cgroup file system.
    Cgroupfs,
    /// Scopes and slices by systemd.
    Systemd,
}

/// What was typed on the command line; each may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--config`: must exist when named.
    pub config: Option<PathBuf>,
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--state`.
    pub state: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--log-level`.
    pub log_level: Option<String>,
}

/// A configuration that cannot be relied on. Each message says where it was typed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file was named and cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{path}, line {line}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// A value that cannot be used.
    #[error("{origin}: {message}")]
    Value {
        /// The flag, the variable or the key with its file.
        origin: String,
        /// What is wrong and what is expected.
        message: String,
    },
    /// Where run-time files would go belongs to someone else.
    #[error(
        "{path} belongs to user {owner}, not to you: set XDG_RUNTIME_DIR, or name a directory of yours with --state"
    )]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Neither HOME nor XDG variables say where this user's files belong.
    #[error("HOME is not set: set it, or name the directories with --root and --state")]
    NoHome,
}

impl Config {
    /// The configuration of this process: from flags, environment and file.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        resolve::resolve(flags, &Environment::of_this_process())
    }
}
