//! `cricket pods`: the pods of this node.

use std::collections::HashMap;
use std::process::ExitCode;

use serde::Serialize;

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

/// A pod, as programs read it.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    namespace: String,
    uid: String,
    attempt: u32,
    state: &'static str,
    ports: Vec<String>,
    /// Nanoseconds since 1970.
    created_at: i64,
    labels: HashMap<String, String>,
    annotations: HashMap<String, String>,
}

/// Runs it.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut rows = block_on(list(settings))?;
    rows.sort_by_key(|row| std::cmp::Reverse(row.created_at));
    if args.quiet {
        rows.iter().try_for_each(|row| table::say(&row.id))?;
    } else {
        let header = ["POD", "NAME", "NAMESPACE", "STATE", "PORTS", "CREATED"];
        table::print(args.output, &rows, &header, columns)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let mut client = Client::connect(settings).await?;
    let pods = client.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.map_err(told)?;
    let mut ports = ports(&mut client).await?;
    let pods = pods.into_inner().items.into_iter();
    Ok(pods.map(|pod| row(ports.remove(&pod.id).unwrap_or_default(), pod)).collect())
}

fn row(ports: Vec<String>, pod: PodSandbox) -> Row {
    let state = match pod.state() {
        PodSandboxState::SandboxReady => "ready",
        PodSandboxState::SandboxNotready => "not ready",
    };
    let metadata = pod.metadata.unwrap_or_default();
    Row {
        id: pod.id,
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
        state,
        ports,
        created_at: pod.created_at,
        labels: pod.labels,
        annotations: pod.annotations,
    }
}

fn columns(row: &Row) -> Vec<String> {
    let created = table::ago(row.created_at);
    let text = [table::short_id(&row.id), &row.name, &row.namespace, row.state, &row.ports.join(", "), &created];
    text.map(str::to_owned).into()
}
