//! `cricket rm`: stops and removes pods, or single containers, and the logs that `cricket run` made for them.

use std::path::Path;
use std::process::ExitCode;

use super::client::{Client, block_on, told};
use super::run::remove_pod;
use super::{Settings, table};
use crate::proto::cri;

/// Arguments of `cricket rm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pods (or containers): id, beginning of it, or name
    #[arg(required_unless_present = "all")]
    names: Vec<String>,
    /// Every pod of this node
    #[arg(short, long, conflicts_with = "names")]
    all: bool,
}

/// Runs it. One that cannot be removed does not keep the others.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut client = Client::connect(settings).await?;
        let names = if args.all { every_pod(&mut client).await? } else { args.names };
        let mut status = ExitCode::SUCCESS;
        for name in names {
            match remove(&mut client, &name).await {
                Ok(id) => table::say(&id)?,
                Err(error) => {
                    super::output::tell(&error);
                    status = ExitCode::FAILURE;
                }
            }
        }
        Ok(status)
    })
}

async fn every_pod(client: &mut Client) -> anyhow::Result<Vec<String>> {
    let pods = client.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.map_err(told)?;
    Ok(pods.into_inner().items.into_iter().map(|pod| pod.id).collect())
}

async fn remove(client: &mut Client, name: &str) -> anyhow::Result<String> {
    match client.find_pod(name).await {
        Ok(pod) => {
            let logs = own_log_directories(client, &pod.id).await?;
            remove_pod(client, &pod.id).await?;
            for directory in logs {
                let _ = std::fs::remove_dir_all(directory);
            }
            Ok(pod.id)
        }
        Err(error) => {
            let Ok(container) = client.find_container(name).await else { return Err(error) };
            let request = cri::RemoveContainerRequest { container_id: container.id.clone() };
            client.runtime.remove_container(request).await.map_err(told)?;
            Ok(container.id)
        }
    }
}

/// Directories of logs that `cricket run` made; those of others (a kubelet's) are theirs.
async fn own_log_directories(client: &mut Client, pod_id: &str) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let node = client.cricket.node(crate::proto::cricket::NodeRequest {}).await.map_err(told)?.into_inner();
    let filter = Some(cri::ContainerFilter { pod_sandbox_id: pod_id.to_owned(), ..Default::default() });
    let containers = client.runtime.list_containers(cri::ListContainersRequest { filter }).await.map_err(told)?;
    let mut directories = Vec::new();
    for container in containers.into_inner().containers {
        let log = client.container_status(&container.id).await?.log_path;
        let directory = Path::new(&log).parent();
        directories
            .extend(directory.filter(|dir| dir.parent() == Some(Path::new(&node.log_directory))).map(Path::to_owned));
    }
    Ok(directories)
}
