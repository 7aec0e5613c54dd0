//! `cricket way-out` (hidden): keeps the program running that connects the node with the host's network; started by
//! `cricket serve`, ended by `cricket stop`.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::Settings;
use crate::network::outbound::{Driver, NAME, keeper};
use crate::sys::descriptors;

/// Arguments of `cricket way-out`. Its standard input is the node's network namespace.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program
    #[arg(long, value_parser = driver)]
    driver: Driver,
    /// Where its record is
    #[arg(long)]
    directory: PathBuf,
    /// The host's loopback addresses are reached through it
    #[arg(long)]
    host_loopback: bool,
}

fn driver(name: &str) -> Result<Driver, String> {
    Driver::named(name).ok_or_else(|| format!("{name} is no driver"))
}

/// Serves until it is ended.
pub fn run(args: Args, _settings: &Settings) -> anyhow::Result<ExitCode> {
    descriptors::close_all_except(&[]).context("closing what was inherited")?;
    rustix::thread::set_name(NAME).context("giving this process its name")?;
    let network = io::stdin().as_fd().try_clone_to_owned().context("duplicating the node's network namespace")?;
    let Args { driver, directory: state, host_loopback } = args;
    keeper::run(&keeper::Order { state, driver, host_loopback, network })?;
    Ok(ExitCode::SUCCESS)
}
