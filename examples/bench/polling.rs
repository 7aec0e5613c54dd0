//! What a kubelet asks again and again, whatever happens: single calls, and a minute of them.

use std::time::Duration;

use anyhow::Context;
use cricket::proto::cri;

use super::account::{Account, Kind};
use super::node::Node;
use super::stages::Watch;
use super::table::Table;

/// Calls for one figure.
const CALLS: u32 = 200;
/// Of statistics, which read files of each container.
const STATISTICS: u32 = 10;
/// How long a kubelet is imitated; the figure is for a minute.
const POLLED: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);
/// Lists of pods and of containers: once for events, about every second time for the kubelet's own cache.
const RELIST: Duration = Duration::from_millis(700);
/// Status comes after so many relists, statistics after so many.
const STATUS_EVERY: u32 = 7;
const STATISTICS_EVERY: u32 = 14;

/// ContainerStatus of one among `count` containers, of the daemon alone.
pub async fn status(node: &Node, account: &Account, table: &mut Table, id: &str, count: usize) -> anyhow::Result<()> {
    let mut runtime = node.runtime.clone();
    let watch = Watch::start(account)?;
    for _ in 0..CALLS {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        runtime.container_status(request).await.context("ContainerStatus")?;
    }
    let daemon = watch.of(|sample| sample.of(Kind::Daemon))? / CALLS;
    table.cpu(format!("ContainerStatus with {count}"), daemon, watch.started.elapsed() / CALLS, None);
    Ok(())
}

/// ListPodSandbox, ListContainerStats and ListPodSandboxStats; the goal is one of a container.
pub async fn lists(node: &Node, account: &Account, table: &mut Table, pods: usize) -> anyhow::Result<()> {
    let mut runtime = node.runtime.clone();
    let watch = Watch::start(account)?;
    for _ in 0..CALLS {
        let list = runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.context("ListPodSandbox")?;
        let count = list.into_inner().items.len();
        anyhow::ensure!(count == pods, "{count} pods are listed, there are {pods}");
    }
    let (cpu, wall) = watch.each(CALLS as usize)?;
    table.cpu(format!("ListPodSandbox with {pods}"), cpu, wall, None);
    let watch = Watch::start(account)?;
    let mut containers = 0;
    for _ in 0..STATISTICS {
        let list = runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await;
        containers = list.context("ListContainerStats")?.into_inner().stats.len();
    }
    let (cpu, wall) = watch.each(STATISTICS as usize)?;
    let each = u32::try_from(containers.max(1))?;
    table.cpu(format!("ListContainerStats, each of {containers}"), cpu / each, wall / each, Some(0.05));
    let watch = Watch::start(account)?;
    for _ in 0..STATISTICS {
        runtime
            .list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default())
            .await
            .context("ListPodSandboxStats")?;
    }
    let (cpu, wall) = watch.each(STATISTICS as usize)?;
    let each = u32::try_from(pods)?;
    table.cpu(format!("ListPodSandboxStats, each of {pods}"), cpu / each, wall / each, None);
    Ok(())
}

/// What a minute costs while a kubelet polls and nothing happens.
pub async fn minute(node: &Node, account: &Account, table: &mut Table, pods: usize) -> anyhow::Result<()> {
    let mut runtime = node.runtime.clone();
    let mut ticks = tokio::time::interval(RELIST);
    let watch = Watch::start(account)?;
    let mut number = 0u32;
    while watch.started.elapsed() < POLLED {
        ticks.tick().await;
        runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?;
        runtime.list_containers(cri::ListContainersRequest::default()).await?;
        if number.is_multiple_of(STATUS_EVERY) {
            runtime.status(cri::StatusRequest::default()).await?;
        }
        if number.is_multiple_of(STATISTICS_EVERY) {
            runtime.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default()).await?;
        }
        number += 1;
    }
    let (cpu, wall) = watch.each(1)?;
    let minute = cpu.mul_f64(MINUTE.as_secs_f64() / wall.as_secs_f64());
    table.cpu(format!("a kubelet polls {pods} pods, a minute"), minute, wall, None);
    Ok(())
}
