//! The command line: what people type, and one file a command.
//!
//! Each command's file has its `Args` and `pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode>`.
//! No thread exists when `run` is called; a command that needs tokio builds the runtime itself, after whatever has
//! to be done with one thread (joining the node's namespaces). An error that reaches `main` is printed in one line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod check;
mod client;
pub mod debug;
pub mod enter;
pub mod exec;
pub mod forward;
pub mod image;
pub mod install;
mod log_file;
pub mod logs;
mod lookup;
pub mod node;
pub mod output;
pub mod pods;
mod ports;
mod progress;
pub mod ps;
pub mod rm;
pub mod run;
pub mod serve;
mod session;
pub mod settings;
pub mod stop;
pub mod supervise;
mod table;
mod terminal;
pub mod version;
mod wait;
pub mod way_out;

pub use settings::Settings;

/// A container runtime for Kubernetes in one static binary, rootless first.
#[derive(Debug, Parser)]
#[command(name = "cricket", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// Where cricket keeps things.
    #[command(flatten)]
    pub settings: Settings,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: serve the Container Runtime Interface on a unix socket
    Serve(serve::Args),
    /// End the daemon and the node; with --pods, the pods too
    Stop(stop::Args),
    /// Say what this machine offers and what it lacks, and how to mend it
    Check(check::Args),
    /// Write and enable the systemd unit, for this user or (as root) for the machine
    Install(install::Args),
    /// Run a command (or a shell) in the node's namespaces: a kubelet, for one
    Enter(enter::Args),
    /// Run a pod with one container from an image
    Run(run::Args),
    /// Load, pull, list and remove images
    Image(image::Args),
    /// List pods
    Pods(pods::Args),
    /// List containers
    Ps(ps::Args),
    /// Print the log of a container
    Logs(logs::Args),
    /// Run a command in a container
    Exec(exec::Args),
    /// Stop and remove pods or containers
    Rm(rm::Args),
    /// Gather what a bug report needs
    Debug(debug::Args),
    /// Print the version of the command line and of the daemon
    Version(version::Args),
    /// Hold the node's namespaces (started by `serve`)
    #[command(hide = true)]
    Node(node::Args),
    /// Carry what arrives at host ports to pods (started by `serve`)
    #[command(hide = true)]
    Forward(forward::Args),
    /// Keep the program running that connects the node with the host's network (started by `serve`)
    #[command(hide = true)]
    WayOut(way_out::Args),
    /// Be the process from which pods' supervisors are forked (started by `serve`)
    #[command(hide = true)]
    Supervise(supervise::Args),
}

impl Cli {
    /// Runs the command; its exit status is the process's.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let settings = &self.settings;
        match self.command {
            Command::Serve(args) => serve::run(args, settings),
            Command::Stop(args) => stop::run(args, settings),
            Command::Check(args) => check::run(args, settings),
            Command::Install(args) => install::run(args, settings),
            Command::Enter(args) => enter::run(args, settings),
            Command::Run(args) => run::run(args, settings),
            Command::Image(args) => image::run(args, settings),
            Command::Pods(args) => pods::run(args, settings),
            Command::Ps(args) => ps::run(args, settings),
            Command::Logs(args) => logs::run(args, settings),
            Command::Exec(args) => exec::run(args, settings),
            Command::Rm(args) => rm::run(args, settings),
            Command::Debug(args) => debug::run(args, settings),
            Command::Version(args) => version::run(args, settings),
            Command::Node(args) => node::run(args, settings),
            Command::Forward(args) => forward::run(args, settings),
            Command::WayOut(args) => way_out::run(args, settings),
            Command::Supervise(args) => supervise::run(args, settings),
        }
    }
}

/// How a command prints what it found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_are_taken_before_and_after_the_command() {
        for line in [["cricket", "--root", "/r", "check"], ["cricket", "check", "--root", "/r"]] {
            let cli = Cli::try_parse_from(line).expect("parsed");
            assert_eq!(cli.settings.root.as_deref(), Some(std::path::Path::new("/r")));
        }
    }
}
