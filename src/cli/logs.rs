//! `cricket logs`: what a container wrote. The file is read directly, as `kubectl logs` has a kubelet do.

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

use super::Settings;
use super::client::{Client, block_on};
use super::log_file::{LogFile, follow};
use super::wait;

/// Arguments of `cricket logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on printing until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// With the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// The container: id, beginning of it, or name; or the name of a pod with one container
    container: String,
}

/// Runs it.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    block_on(print(args, settings))?;
    Ok(ExitCode::SUCCESS)
}

async fn print(args: Args, settings: &Settings) -> anyhow::Result<()> {
    let mut client = Client::connect(settings).await?;
    let id = client.find_container(&args.container).await?.id;
    let path = client.container_status(&id).await?.log_path;
    if path.is_empty() {
        bail!("container {:?} has no log: whoever made it gave no log path", args.container);
    }
    let mut log = LogFile::open(Path::new(&path), args.tail, args.timestamps)?;
    if !args.follow {
        return Ok(log.print_rest()?);
    }
    tokio::select! {
        result = follow(log, wait::exited(&mut client, &id)) => result?.map(|_| ()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}
