//! `cricket pods`: the pods of this node.

use std::collections::HashMap;
use std::process::ExitCode;

use super::client::{Client, block_on, told};
use super::ports::ports;
use super::{Output, Settings, table};
use crate::proto::cri::{ListPodSandboxRequest, PodSandbox, PodSandboxState};

/// Arguments of `cricket pods`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs it.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let (mut pods, ports) = block_on(async {
        let mut client = Client::connect(settings).await?;
        let list = client.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.map_err(told)?;
        Ok((list.into_inner().items, ports(&mut client).await?))
    })?;
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    if args.quiet {
        pods.iter().try_for_each(|pod| table::say(&pod.id))?;
    } else {
        let header = ["POD", "NAME", "NAMESPACE", "STATE", "PORTS", "CREATED"];
        table::print(args.output, &pods, &header, |pod| row(pod, &ports))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(pod: &PodSandbox, ports: &HashMap<String, String>) -> Vec<String> {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let state = match pod.state() {
        PodSandboxState::SandboxReady => "ready",
        PodSandboxState::SandboxNotready => "not ready",
    };
    let id = table::short_id(&pod.id).to_owned();
    let ports = ports.get(&pod.id).cloned().unwrap_or_default();
    vec![id, metadata.name, metadata.namespace, state.to_owned(), ports, table::ago(pod.created_at)]
}
