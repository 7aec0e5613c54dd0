//! `cricket version`.

use std::process::ExitCode;

use super::Settings;

/// Arguments of `cricket version`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(_args: Args, _settings: &Settings) -> anyhow::Result<ExitCode> {
    anyhow::bail!("cricket version is not in this build")
}
