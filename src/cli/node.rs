//! `cricket node`.

use std::process::ExitCode;

use super::Settings;

/// Arguments of `cricket node`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(_args: Args, _settings: &Settings) -> anyhow::Result<ExitCode> {
    anyhow::bail!("cricket node is not in this build")
}
