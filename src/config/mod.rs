//! The configuration: `cricket.toml` as typed by the user, turned once into what the code may rely on.
//!
//! Precedence: flags, then `CRICKET_*` variables, then the file, then the defaults. Unknown keys are an error that
//! names the line. Every path in [`Config`] is absolute.

use std::path::PathBuf;

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
    /// Mirror rules: directory that holds `HOST/hosts.toml`. `/etc/cricket/certs.d` or `$XDG_CONFIG_HOME/cricket/certs.d`.
    pub registry_config_path: PathBuf,
    /// Which cgroup driver kubelets are told to use.
    pub cgroup_driver: CgroupDriver,
    /// `127.0.0.1:0`: where exec, attach and port-forward sessions are served.
    pub streaming_address: std::net::SocketAddr,
    /// CNI configurations. `/etc/cni/net.d` or `$XDG_CONFIG_HOME/cni/net.d`.
    pub cni_config_dir: PathBuf,
    /// CNI plugins. `/opt/cni/bin`, `/usr/lib/cni`.
    pub cni_plugin_dirs: Vec<PathBuf>,
    /// Pod addresses of the built-in network, until a kubelet names others.
    pub pod_cidrs: Vec<String>,
}

/// Who makes the cgroups of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Directories in the cgroup file system.
    Cgroupfs,
    /// Scopes and slices by systemd.
    Systemd,
}
