//! `cricket ps`: the containers of this node.

use std::collections::HashMap;
use std::process::ExitCode;

use super::client::{Client, block_on, told};
use super::ports::ports;
use super::{Output, Settings, table};
use crate::proto::cri::{
    Container, ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest, ListPodSandboxRequest,
    PodSandbox,
};

/// Arguments of `cricket ps`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also containers that do not run
    #[arg(short, long)]
    all: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs it.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let (mut containers, pods, ports) = block_on(lists(args.all, settings))?;
    containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    if args.quiet {
        containers.iter().try_for_each(|container| table::say(&container.id))?;
    } else {
        let header = ["CONTAINER", "NAME", "POD", "IMAGE", "STATE", "PORTS", "CREATED"];
        table::print(args.output, &containers, &header, |container| row(container, &pods, &ports))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn lists(
    all: bool,
    settings: &Settings,
) -> anyhow::Result<(Vec<Container>, Vec<PodSandbox>, HashMap<String, String>)> {
    let mut client = Client::connect(settings).await?;
    let running = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
    let filter = (!all).then(|| ContainerFilter { state: Some(running), ..Default::default() });
    let containers = client.runtime.list_containers(ListContainersRequest { filter }).await.map_err(told)?;
    let pods = client.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.map_err(told)?;
    let ports = ports(&mut client).await?;
    Ok((containers.into_inner().containers, pods.into_inner().items, ports))
}

fn row(container: &Container, pods: &[PodSandbox], ports: &HashMap<String, String>) -> Vec<String> {
    let pod = pods.iter().find(|pod| pod.id == container.pod_sandbox_id).and_then(|pod| pod.metadata.as_ref());
    let image = container.image.as_ref().map_or("", |image| match image.user_specified_image.as_str() {
        "" => image.image.as_str(),
        specified => specified,
    });
    let image = if image.starts_with("sha256:") { table::short_id(image) } else { image };
    let state = match container.state() {
        ContainerState::ContainerCreated => "created",
        ContainerState::ContainerRunning => "running",
        ContainerState::ContainerExited => "exited",
        ContainerState::ContainerUnknown => "unknown",
    };
    vec![
        table::short_id(&container.id).to_owned(),
        container.metadata.clone().unwrap_or_default().name,
        pod.map_or_else(|| table::short_id(&container.pod_sandbox_id).to_owned(), |metadata| metadata.name.clone()),
        image.to_owned(),
        state.to_owned(),
        ports.get(&container.pod_sandbox_id).cloned().unwrap_or_default(),
        table::ago(container.created_at),
    ]
}
