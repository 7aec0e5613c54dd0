//! `cricket node` (hidden): holds the node's namespaces; started by `cricket serve`, ended by `cricket stop`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::Settings;
use crate::rootless;
use crate::sys::namespace::Namespace;

/// Arguments of `cricket node`; the state directory comes with the settings.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The delegated cgroup in which the node is made
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// A namespace of the node to be joined, by the name below /proc/PID/ns
    #[arg(long = "namespace", value_name = "KIND=PATH", value_parser = parse_place)]
    namespaces: Vec<(Namespace, PathBuf)>,
}

fn parse_place(text: &str) -> Result<(Namespace, PathBuf), String> {
    let (kind, path) = text.split_once('=').ok_or("KIND=PATH is expected")?;
    Ok((Namespace::named(kind).ok_or_else(|| format!("there is no namespace {kind:?}"))?, path.into()))
}

/// Holds the node until SIGTERM.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let state = settings.state.as_deref().context("--state is not given: `cricket serve` starts this command")?;
    rootless::hold(state, args.cgroup.as_deref(), args.namespaces.into_iter().collect()).context("the node process")?;
    Ok(ExitCode::SUCCESS)
}
