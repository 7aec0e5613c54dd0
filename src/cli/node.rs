//! `cricket node` (hidden): holds the node's namespaces; started by `cricket serve`, ended by `cricket stop`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::Settings;
use crate::rootless;

/// Arguments of `cricket node`; the state directory comes with the settings.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The delegated cgroup in which the node is made
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
}

/// Holds the node until SIGTERM.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let state = settings.state.as_deref().context("--state is not given: `cricket serve` starts this command")?;
    rootless::hold(state, args.cgroup.as_deref()).context("the node process")?;
    Ok(ExitCode::SUCCESS)
}
