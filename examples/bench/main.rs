//! Measures what pods cost: `scripts/bench` builds and runs this; it is not part of what is shipped.
//!
//! It starts a daemon of its own as an ordinary user, speaks CRI to it as a kubelet does, and prints a table with the
//! goals beside the figures. How CPU time is counted is said in account.rs. Every figure is printed, also a bad one;
//! the exit status says only whether the measurement could be made.

mod account;
mod memory;
mod network;
mod node;
mod peers;
mod pods;
mod polling;
mod stages;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use cricket::proto::cri;

use account::Account;
use node::Node;
use peers::Beside;
use table::Table;

/// What is measured, and how often.
#[derive(Debug, Parser)]
struct Args {
    /// The binary that is measured: a release build
    #[arg(long)]
    cricket: PathBuf,
    /// An archive of the busybox image
    #[arg(long)]
    image: PathBuf,
    /// Where images, records and logs of this run are kept
    #[arg(long)]
    directory: PathBuf,
    /// Its run-time state: on a tmpfs, where every node has it; on a disk, the disk's file system is in all figures
    #[arg(long)]
    state: PathBuf,
    /// Pods one after another, and at most how many at rest
    #[arg(long, default_value_t = 100)]
    pods: usize,
    /// Megabytes of log
    #[arg(long, default_value_t = 200)]
    log_megabytes: u64,
    /// Megabytes through exec
    #[arg(long, default_value_t = 200)]
    stream_megabytes: u64,
    /// Give pods the node's network instead of one of their own
    #[arg(long)]
    node_network: bool,
    /// Run containers without a seccomp filter, to see what theirs costs
    #[arg(long)]
    unconfined: bool,
    /// Only these stages: pods, containers, exec, stream, together, log, rest; and network, which is measured only when
    /// named
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

impl Args {
    fn wants(&self, stage: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == stage)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    if std::env::args().nth(1).as_deref() == Some("beside") {
        peers::compare(&Beside::parse_from(std::env::args().skip(1))).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let args = Args::parse();
    // Orphans of the daemon become our children, so that no CPU time is lost with them.
    account::adopt_orphans()?;
    let mut node = Node::start(&args.cricket, &args.directory, &args.state).await?;
    if args.node_network {
        node.network = cri::NamespaceMode::Node;
    }
    if args.unconfined {
        node.seccomp = cri::security_profile::ProfileType::Unconfined;
    }
    let result = measure(&mut node, &args).await;
    if result.is_err() {
        eprintln!("{}", node.last_words());
    }
    let stopped = node.stop();
    result?.print();
    stopped?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(node: &mut Node, args: &Args) -> anyhow::Result<Table> {
    node.load(&args.image).await.context("loading the image")?;
    let mut table = Table::default();
    let mut account = Account::new(node.daemon_pid());
    stages::warm_up(node).await?;
    let mut pods = None;
    if args.wants("pods") {
        pods = Some(stages::pods(node, &mut account, &mut table, args.pods.min(30)).await.context("stage pods")?);
    }
    if args.only.iter().any(|stage| stage == "network") {
        network::networks(node, &mut account, &mut table, args.pods.min(50)).await.context("stage network")?;
    }
    if args.wants("containers") {
        let container = stages::containers(node, &account, &mut table, 40, 1).await.context("stage containers")?;
        pods.iter().for_each(|pods| stages::whole_pods(&mut table, pods, container));
    }
    if args.wants("exec") {
        stages::exec(node, &account, &mut table, 200).await.context("stage exec")?;
    }
    if args.wants("stream") {
        stages::stream(node, &account, &mut table, args.stream_megabytes).await.context("stage stream")?;
    }
    if args.wants("together") {
        stages::together(node, &mut account, &mut table, 10).await.context("stage together")?;
    }
    if args.wants("log") {
        stages::log(node, &account, &mut table, args.log_megabytes).await.context("stage log")?;
    }
    if args.wants("rest") {
        stages::rest(node, &account, &mut table, args.pods).await.context("stage rest")?;
    }
    Ok(table)
}
