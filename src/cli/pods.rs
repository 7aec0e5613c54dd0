//! `cricket pods`.

use std::process::ExitCode;

use super::Settings;

/// Arguments of `cricket pods`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(_args: Args, _settings: &Settings) -> anyhow::Result<ExitCode> {
    anyhow::bail!("cricket pods is not in this build")
}
