//! `cricket serve`: the daemon in the foreground, until SIGTERM or SIGINT. Pods outlive it.

use std::process::ExitCode;

use super::Settings;
use crate::daemon;

/// Arguments of `cricket serve`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(_args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    daemon::serve(settings.load()?)?;
    Ok(ExitCode::SUCCESS)
}
