//! `cricket ps`: the containers of this node.

use std::collections::HashMap;
use std::process::ExitCode;

use serde::Serialize;

use super::client::{Client, block_on, told};
use super::ports::ports;
use super::{Output, Settings, table};
use crate::proto::cri::{
    Container, ContainerFilter, ContainerState, ContainerStateValue, ContainerStatusRequest, ListContainersRequest,
    ListPodSandboxRequest,
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

/// A container, as programs read it.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    pod_id: String,
    pod: String,
    image: String,
    state: &'static str,
    /// Of one that has exited.
    exit_code: Option<i32>,
    ports: Vec<String>,
    /// Nanoseconds since 1970.
    created_at: i64,
    labels: HashMap<String, String>,
    annotations: HashMap<String, String>,
}

/// Runs it.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut rows = block_on(list(args.all, settings))?;
    rows.sort_by_key(|row| std::cmp::Reverse(row.created_at));
    if args.quiet {
        rows.iter().try_for_each(|row| table::say(&row.id))?;
    } else {
        let header = ["CONTAINER", "NAME", "POD", "IMAGE", "STATE", "PORTS", "CREATED"];
        table::print(args.output, &rows, &header, columns)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(all: bool, settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let mut client = Client::connect(settings).await?;
    let running = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
    let filter = (!all).then(|| ContainerFilter { state: Some(running), ..Default::default() });
    let containers = client.runtime.list_containers(ListContainersRequest { filter }).await.map_err(told)?;
    let pods = client.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.map_err(told)?;
    let named = |pod: crate::proto::cri::PodSandbox| (pod.id, pod.metadata.unwrap_or_default().name);
    let pods: HashMap<String, String> = pods.into_inner().items.into_iter().map(named).collect();
    let ports = ports(&mut client).await?;
    let mut rows = Vec::new();
    for container in containers.into_inner().containers {
        let exit_code = match container.state() {
            ContainerState::ContainerExited => exit_code(&mut client, &container.id).await?,
            _ => None,
        };
        let pod = pods.get(&container.pod_sandbox_id).cloned();
        let ports = ports.get(&container.pod_sandbox_id).cloned().unwrap_or_default();
        rows.push(row(container, pod, ports, exit_code));
    }
    Ok(rows)
}

/// `None`: it was removed meanwhile.
async fn exit_code(client: &mut Client, id: &str) -> anyhow::Result<Option<i32>> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    match client.runtime.container_status(request).await {
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        answer => Ok(answer.map_err(told)?.into_inner().status.map(|status| status.exit_code)),
    }
}

fn row(container: Container, pod: Option<String>, ports: Vec<String>, exit_code: Option<i32>) -> Row {
    let image = container.image.clone().unwrap_or_default();
    let state = match container.state() {
        ContainerState::ContainerCreated => "created",
        ContainerState::ContainerRunning => "running",
        ContainerState::ContainerExited => "exited",
        ContainerState::ContainerUnknown => "unknown",
    };
    Row {
        name: container.metadata.unwrap_or_default().name,
        pod: pod.unwrap_or_default(),
        image: if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
        state,
        exit_code,
        ports,
        created_at: container.created_at,
        id: container.id,
        pod_id: container.pod_sandbox_id,
        labels: container.labels,
        annotations: container.annotations,
    }
}

fn columns(row: &Row) -> Vec<String> {
    let image = if row.image.starts_with("sha256:") { table::short_id(&row.image) } else { &row.image };
    let pod = if row.pod.is_empty() { table::short_id(&row.pod_id) } else { &row.pod };
    let state = row.exit_code.map_or_else(|| row.state.to_owned(), |code| format!("{} ({code})", row.state));
    let created = table::ago(row.created_at);
    let text = [table::short_id(&row.id), &row.name, pod, image, &state, &row.ports.join(", "), &created];
    text.map(str::to_owned).into()
}
