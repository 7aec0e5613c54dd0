//! `cricket forward` (hidden): carries what arrives at host ports to pods; started by `cricket serve`, ended by
//! `cricket stop`.

use std::process::ExitCode;

use anyhow::Context;

use super::Settings;
use crate::network::ports::{DOOR, forwarder};
use crate::sys::{descriptors, spawn};

/// Arguments of `cricket forward`: none.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Serves until it is ended.
pub fn run(_args: Args, _settings: &Settings) -> anyhow::Result<ExitCode> {
    let door = spawn::inherited(DOOR).context("its socket is not there: `cricket serve` starts this command")?;
    descriptors::close_all_except(&[DOOR]).context("closing what was inherited")?;
    // What `ps` and the kernel's messages call it; without a name it is only less plain.
    let _ = rustix::thread::set_name(c"cricket-forward");
    forwarder::run(door).context("the forwarder of host ports")?;
    Ok(ExitCode::SUCCESS)
}
