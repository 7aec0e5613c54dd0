//! `cricket stop`: ends the daemon and then the node; with `--pods`, the pods and whatever else runs in the node.
//! Ending what has ended is no error. Mounts and networks go with their namespaces.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::Settings;
use crate::config::Config;
use crate::executor::leftovers;
use crate::rootless::{NodeRecord, cgroups};
use crate::store::Lock;
use crate::sys::process::{self, ProcessId};

/// The daemon lets calls under way end for half of it.
const DAEMON_PATIENCE: Duration = Duration::from_secs(10);
/// Containers' own programs may use it to end well.
const PODS_PATIENCE: Duration = Duration::from_secs(10);
/// The node process does nothing that takes time.
const NODE_PATIENCE: Duration = Duration::from_secs(5);
/// Processes that start others while they are ended.
const ROUNDS: usize = 5;

/// Arguments of `cricket stop`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End the pods too, and everything else that runs in the node
    #[arg(long)]
    pods: bool,
}

/// Ends it and says what it ended.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let config = settings.load()?;
    let mut ended = Vec::new();
    ended.extend(end_daemon(&config)?);
    if args.pods {
        ended.extend(end_pods(&config.state)?);
    }
    ended.extend(end_node(&config.state, args.pods)?);
    match ended.is_empty() {
        true => println!("nothing to stop: no cricket runs with the state directory {}", config.state.display()),
        false => ended.iter().for_each(|line| println!("{line}")),
    }
    Ok(ExitCode::SUCCESS)
}

fn end_daemon(config: &Config) -> anyhow::Result<Option<String>> {
    let Some(daemon) = Lock::holder(&config.root)? else {
        remove_stale_socket(&config.socket);
        return Ok(None);
    };
    daemon.end(DAEMON_PATIENCE).with_context(|| format!("ending the daemon (pid {})", daemon.pid))?;
    remove_stale_socket(&config.socket);
    Ok(Some(format!("ended the daemon (pid {})", daemon.pid)))
}

/// A daemon that was killed leaves its socket.
fn remove_stale_socket(socket: &Path) {
    if std::os::unix::net::UnixStream::connect(socket).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    {
        let _ = std::fs::remove_file(socket);
    }
}

fn end_pods(state: &Path) -> anyhow::Result<Option<String>> {
    let supervisors = supervisors(state);
    let living: Vec<ProcessId> = supervisors.iter().filter_map(|(_, process)| *process).collect();
    process::end_all(&living, PODS_PATIENCE).context("ending the pods' supervisors")?;
    for (directory, _) in &supervisors {
        leftovers::kill(directory).with_context(|| format!("ending what is left of {}", directory.display()))?;
    }
    Ok((!living.is_empty()).then(|| format!("ended {} pod(s)", living.len())))
}
