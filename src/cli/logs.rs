//! `cricket logs`.

use std::process::ExitCode;

use super::Settings;

/// Arguments of `cricket logs`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(_args: Args, _settings: &Settings) -> anyhow::Result<ExitCode> {
    anyhow::bail!("cricket logs is not in this build")
}
