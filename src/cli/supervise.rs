//! `cricket supervise` (hidden): the process from which pods' supervisors are forked; started by the daemon.

use std::process::ExitCode;

use super::Settings;
use crate::executor::protocol::TEMPLATE_SOCKET;
use crate::executor::supervisor::template;
use crate::sys::sealed;

/// None: everything comes through the socket.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Serves until the daemon is gone. Refuses to run from a file that a container could write through /proc/PID/exe.
pub fn run(_args: Args, _settings: &Settings) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(sealed::is_sealed(), "the binary is not sealed: `cricket serve` starts this command");
    template::main(TEMPLATE_SOCKET)?;
    Ok(ExitCode::SUCCESS)
}
