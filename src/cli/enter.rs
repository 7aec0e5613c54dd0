//! `cricket enter -- COMMAND`: runs a command (a kubelet, kube-proxy, critest, a shell) in the node.
//!
//! This process becomes the command, so terminal, environment, signals and exit status are the command's own. What
//! is added to the environment lets `cricket` inside find the same daemon.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::Context;

use super::Settings;
use crate::config::Config;
use crate::rootless::{self, NodeKind, NodeRecord, RootlessError, cgroups};
use crate::sys::namespace::Namespace;

/// As shells say it: the command is there and cannot be run.
const CANNOT_RUN: u8 = 126;
/// As shells say it: there is no such command.
const NOT_FOUND: u8 = 127;
const FALLBACK_SHELL: &str = "/bin/sh";

/// Arguments of `cricket enter`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The command and its arguments; without one, a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Becomes the command; returns only when that fails.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let config = settings.load()?;
    join(&config)?;
    let mut words = args.command.into_iter();
    let program = words.next().unwrap_or_else(|| std::env::var_os("SHELL").unwrap_or_else(|| FALLBACK_SHELL.into()));
    let mut command = Command::new(&program);
    command.args(words);
    command.env("CRICKET_ROOT", &config.root).env("CRICKET_STATE", &config.state).env("CRICKET_SOCKET", &config.socket);
    let error = command.exec();
    eprintln!("cricket: cannot run {}: {error}", program.display());
    Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN }))
}

fn join(config: &Config) -> anyhow::Result<()> {
    let Some(record) = NodeRecord::read(&config.state)?.filter(NodeRecord::is_live) else {
        // Where cricket makes no namespaces, this process is in the node already.
        return match NodeKind::here().context("reading /proc/self/uid_map")? {
            NodeKind::Made => Err(RootlessError::NoNode(config.state.clone()).into()),
            NodeKind::Found | NodeKind::Root => Ok(()),
        };
    };
    if is_inside(&record) {
        return Ok(());
    }
    move_into_cgroup(&record);
    rootless::enter(&record, &Namespace::ALL)?;
    Ok(())
}

fn is_inside(record: &NodeRecord) -> bool {
    let own = std::process::id() as i32;
    record.namespaces.iter().all(|(kind, wanted)| kind.inode_of(own).is_ok_and(|inode| inode == *wanted))
}

/// Before the cgroup namespace is joined: afterwards the kernel refuses moves across its root.
fn move_into_cgroup(record: &NodeRecord) {
    let Some(base) = &record.cgroup else { return };
    if let Err(error) = cgroups::move_into(&base.join(cgroups::NODE_LEAF)) {
        eprintln!(
            "cricket: this session may not move the command into the node's cgroup ({error}), so a kubelet in it cannot \
             manage pods' cgroups: use `systemd-run --user --scope cricket enter -- ...`"
        );
    }
}
