//! The settings that every command takes, and how they become a [`Config`].

use std::path::PathBuf;

use crate::config::{Config, Flags};

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
        let settings = self.clone();
        Ok(Config::load(&Flags {
            config: settings.config,
            root: settings.root,
            state: settings.state,
            socket: settings.socket,
            log_level: settings.log_level,
        })?)
    }
}
