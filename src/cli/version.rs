//! `cricket version`: of the command line and of the daemon.

use std::process::ExitCode;

use super::client::{Client, block_on, told};
use super::{Settings, table};
use crate::proto::cri::VersionRequest;

/// Arguments of `cricket version`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it. Without a daemon there is one line only.
pub fn run(_args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    table::say(&format!("cricket {}", env!("CARGO_PKG_VERSION")))?;
    let daemon = block_on(async {
        let mut client = Client::connect(settings).await?;
        Ok(client.runtime.version(VersionRequest::default()).await.map_err(told)?.into_inner())
    });
    if let Ok(daemon) = daemon {
        table::say(&format!("daemon  {}, CRI {}", daemon.runtime_version, daemon.runtime_api_version))?;
    }
    Ok(ExitCode::SUCCESS)
}
