//! The settings that every command takes, and how they become a [`Config`].

use std::path::PathBuf;

use anyhow::Context;

use crate::config::{CgroupDriver, Config};

/// Flags and `CRICKET_*` variables; over the file, over the defaults.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Settings {
    /// The configuration file
    #[arg(long, global = true, env = "CRICKET_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where images, layers and records are kept (disk)
    #[arg(long, global = true, env = "CRICKET_ROOT", value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Where sockets and what lives until a reboot are kept
    #[arg(long, global = true, env = "CRICKET_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The socket of the Container Runtime Interface
    #[arg(long, global = true, env = "CRICKET_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as cricket::image=trace
    #[arg(long, global = true, env = "CRICKET_LOG_LEVEL", value_name = "FILTER")]
    pub log_level: Option<String>,
}

impl Settings {
    /// The configuration that these settings, the file and the defaults give.
    pub fn load(&self) -> anyhow::Result<Config> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let root_user = rustix::process::geteuid().is_root();
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let state = match (&self.state, root_user, runtime) {
            (Some(dir), ..) => dir.clone(),
            (None, true, _) => "/run/cricket".into(),
            (None, false, Some(dir)) => dir.join("cricket"),
            (None, false, None) => {
                std::env::temp_dir().join(format!("cricket-{}", rustix::process::geteuid().as_raw()))
            }
        };
        let root = match (&self.root, root_user) {
            (Some(dir), _) => dir.clone(),
            (None, true) => "/var/lib/cricket".into(),
            (None, false) => home.context("HOME is not set; give --root")?.join(".local/share/cricket"),
        };
        Ok(Config {
            socket: self.socket.clone().unwrap_or_else(|| state.join("cricket.sock")),
            root,
            state,
            log_level: self.log_level.clone().unwrap_or_else(|| "info".into()),
            registry_config_path: "/etc/cricket/certs.d".into(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            streaming_address: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            cni_config_dir: "/etc/cni/net.d".into(),
            cni_plugin_dirs: vec!["/opt/cni/bin".into()],
            pod_cidrs: Vec::new(),
        })
    }
}
