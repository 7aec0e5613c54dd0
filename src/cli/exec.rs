//! `cricket exec`: a command in a running container, with its streams and exit status.

use std::process::ExitCode;

use super::Settings;
use super::client::{Client, block_on, told};
use super::session::{Session, Wants};
use crate::proto::cri::ExecRequest;

/// Arguments of `cricket exec`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Give it this terminal's input
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// The container: id, beginning of it, or name; or the name of a pod with one container
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs it.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    block_on(exec(args, settings)).map(ExitCode::from)
}

async fn exec(args: Args, settings: &Settings) -> anyhow::Result<u8> {
    let mut client = Client::connect(settings).await?;
    let request = ExecRequest {
        container_id: client.find_container(&args.container).await?.id,
        cmd: args.command,
        tty: args.tty,
        stdin: args.interactive,
        stdout: true,
        stderr: !args.tty,
    };
    let url = client.runtime.exec(request).await.map_err(told)?.into_inner().url;
    Session::dial(&url).await?.run(Wants { stdin: args.interactive, tty: args.tty }).await
}
