//! What is measured, stage by stage. Goals are those of SPECIFICATION.md.

use std::time::{Duration, Instant};

use anyhow::Context;
use cricket::proto::cri;
use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt};

use super::account::{Account, Kind, Sample};
use super::memory;
use super::node::Node;
use super::pods::Pod;
use super::polling;
use super::table::Table;

/// A container that stays.
pub const SLEEP: [&str; 2] = ["sleep", "100000"];
/// Calls of a list, for one figure.
const LISTS: u32 = 200;
/// How long the node is watched at rest.
const REST: Duration = Duration::from_secs(20);

/// CPU and wall time of what was done since.
pub struct Watch<'a> {
    account: &'a Account,
    before: Sample,
    pub started: Instant,
}

impl<'a> Watch<'a> {
    pub fn start(account: &'a Account) -> anyhow::Result<Self> {
        Ok(Self { account, before: account.sample()?, started: Instant::now() })
    }

    /// Total CPU and wall time, each divided by `count`.
    pub fn each(&self, count: usize) -> anyhow::Result<(Duration, Duration)> {
        let wall = self.started.elapsed();
        let cpu = self.account.sample()?.total().saturating_sub(self.before.total());
        let count = u32::try_from(count)?;
        Ok((cpu / count, wall / count))
    }

    /// CPU time of one kind.
    pub fn of(&self, part: impl Fn(&Sample) -> Duration) -> anyhow::Result<Duration> {
        Ok(part(&self.account.sample()?).saturating_sub(part(&self.before)))
    }
}

/// Caches of the kernel and the daemon's threads, as they are on a node that runs.
pub async fn warm_up(node: &Node) -> anyhow::Result<()> {
    for _ in 0..3 {
        let pod = node.run_pod().await?;
        let id = node.create(&pod, &SLEEP).await?;
        node.start_container(&id).await?;
        node.exec(&id, &["true"]).await?;
        node.remove_container(&id).await?;
        node.remove_pod(&pod).await?;
    }
    Ok(())
}

/// Does `work` with each, one after the other or `width` at once; the results are in order.
async fn each<T, U, F: Future<Output = anyhow::Result<U>>>(
    items: impl IntoIterator<Item = T>,
    width: usize,
    work: impl FnMut(T) -> F,
) -> anyhow::Result<Vec<U>> {
    futures_util::stream::iter(items).map(work).buffered(width).try_collect().await
}

/// Pods that were made, and what that took.
struct Up {
    pods: Vec<(Pod, Option<String>)>,
    cpu: Duration,
    wall: Duration,
}

async fn one_up(node: &Node, with_container: bool) -> anyhow::Result<(Pod, Option<String>)> {
    let pod = node.run_pod().await?;
    if !with_container {
        return Ok((pod, None));
    }
    let id = node.create(&pod, &SLEEP).await?;
    node.start_container(&id).await?;
    Ok((pod, Some(id)))
}

async fn up(node: &Node, account: &Account, count: usize, width: usize, with_container: bool) -> anyhow::Result<Up> {
    let watch = Watch::start(account)?;
    let pods = each(0..count, width, |_| one_up(node, with_container)).await?;
    let (cpu, wall) = watch.each(count)?;
    Ok(Up { pods, cpu, wall })
}

/// What pods' ends took, all together.
struct Down {
    /// CPU time since the moment before the pods were made.
    life: Duration,
    stop_wall: Duration,
    /// Of RemovePodSandbox.
    remove: Duration,
    remove_wall: Duration,
}

/// Ends pods by another daemon (see account.rs), whose start is in no figure.
async fn down(
    node: &mut Node,
    account: &mut Account,
    before: Duration,
    pods: &[(Pod, Option<String>)],
    width: usize,
) -> anyhow::Result<Down> {
    node.restart().await?;
    let start = account.follow(node.daemon_pid())?;
    let node = &*node;
    let started = Instant::now();
    each(pods, width, async |(pod, container)| {
        if let Some(id) = container {
            node.remove_container(id).await?;
        }
        node.stop_pod(pod).await
    })
    .await?;
    let stop_wall = started.elapsed();
    let watch = Watch::start(account)?;
    each(pods, width, |(pod, _)| node.delete_pod(pod)).await?;
    let (remove, remove_wall) = watch.each(1)?;
    let life = account.sample()?.total().saturating_sub(before).saturating_sub(start);
    Ok(Down { life, stop_wall, remove, remove_wall })
}

/// CPU time of whole pods.
pub struct Pods {
    /// RunPodSandbox.
    run: Duration,
    /// The same on the node's network.
    run_without_network: Duration,
    /// Of a pod with a container, all that is done with it.
    life: Duration,
}

/// Whole pods, one after another: with and without a container, with and without a network of their own.
pub async fn pods(node: &mut Node, account: &mut Account, table: &mut Table, count: usize) -> anyhow::Result<Pods> {
    let n = u32::try_from(count)?;
    let (run, empty_life) = sandboxes(node, account, table, count, 1).await?;
    let usual = std::mem::replace(&mut node.network, cri::NamespaceMode::Node);
    let before = account.sample()?.total();
    let bare = up(node, account, count, 1, false).await?;
    down(node, account, before, &bare.pods, 1).await?;
    node.network = usual;
    table.cpu("RunPodSandbox on the node's network", bare.cpu, bare.wall, None);

    let before = account.sample()?.total();
    let full = up(node, account, count, 1, true).await?;
    let end = down(node, account, before, &full.pods, 1).await?;
    let container = end.life.saturating_sub(empty_life) / n;
    table.cpu("container: create, start, stop, remove", container, Duration::ZERO, None);
    let down_wall = (end.stop_wall + end.remove_wall) / n;
    table.cpu("whole life of a pod with a container", end.life / n, full.wall + down_wall, Some(16.0));
    table.cpu("  up (wall)", Duration::ZERO, full.wall, None);
    table.cpu("  stop and remove (wall)", Duration::ZERO, down_wall, None);
    Ok(Pods { run, run_without_network: bare.cpu, life: end.life / n })
}

/// Pods without containers; answers the CPU time to run one, and that of all their lives.
async fn sandboxes(
    node: &mut Node,
    account: &mut Account,
    table: &mut Table,
    count: usize,
    width: usize,
) -> anyhow::Result<(Duration, Duration)> {
    let (n, how) = (u32::try_from(count)?, how(width));
    let before = account.sample()?.total();
    let empty = up(node, account, count, width, false).await?;
    let end = down(node, account, before, &empty.pods, width).await?;
    table.cpu(format!("RunPodSandbox{how}"), empty.cpu, empty.wall, Some(5.0));
    let stop = (end.life / n).saturating_sub(empty.cpu + end.remove / n);
    table.cpu(format!("StopPodSandbox{how}"), stop, end.stop_wall / n, None);
    table.cpu(format!("RemovePodSandbox{how}"), end.remove / n, end.remove_wall / n, None);
    Ok((empty.cpu, end.life))
}

/// For the table.
fn how(width: usize) -> String {
    if width == 1 { String::new() } else { format!(", {width} at once") }
}

/// What the goals are about: sums of what the stages measured, for the kernel tells the CPU time of a living
/// supervisor's children in steps of ten milliseconds, too coarse for one container a pod.
pub fn whole_pods(table: &mut Table, pods: &Pods, create_and_start: Duration) {
    let up = pods.run + create_and_start;
    table.cpu("whole pod up: run, create, start", up, Duration::ZERO, None);
    let without = pods.run_without_network + create_and_start;
    table.cpu("  without the pod network's share", without, Duration::ZERO, Some(11.0));
    let end = pods.life.saturating_sub(up);
    table.cpu("stop and remove container and pod", end, Duration::ZERO, Some(5.0));
}

/// Containers in one pod, one after the other and so many at once. Answers the CPU time to create and start one.
pub async fn containers(
    node: &Node,
    account: &Account,
    table: &mut Table,
    count: usize,
    width: usize,
) -> anyhow::Result<Duration> {
    let (pod, how) = (node.run_pod().await?, how(width));
    let watch = Watch::start(account)?;
    let ids = each(0..count, width, |_| node.create(&pod, &SLEEP)).await?;
    let (create, create_wall) = watch.each(count)?;
    let watch = Watch::start(account)?;
    each(&ids, width, |id| node.start_container(id)).await?;
    let (start, start_wall) = watch.each(count)?;
    let watch = Watch::start(account)?;
    each(&ids, width, |id| node.stop_container(id)).await?;
    let (stop, stop_wall) = watch.each(count)?;
    let watch = Watch::start(account)?;
    each(&ids, width, |id| node.delete_container(id)).await?;
    let (remove, remove_wall) = watch.each(count)?;
    table.cpu(format!("CreateContainer{how}"), create, create_wall, None);
    table.cpu(format!("StartContainer{how}"), start, start_wall, None);
    table.cpu(format!("Create + StartContainer{how}"), create + start, create_wall + start_wall, Some(6.0));
    table.cpu(format!("StopContainer{how}"), stop, stop_wall, None);
    table.cpu(format!("RemoveContainer{how}"), remove, remove_wall, None);
    node.remove_pod(&pod).await?;
    Ok(create + start)
}

/// ExecSync of `true`.
pub async fn exec(node: &Node, account: &Account, table: &mut Table, count: usize) -> anyhow::Result<()> {
    let pod = node.run_pod().await?;
    let id = node.create(&pod, &SLEEP).await?;
    node.start_container(&id).await?;
    let serial = Watch::start(account)?;
    for _ in 0..count {
        node.exec(&id, &["true"]).await?;
    }
    let (cpu, wall) = serial.each(count)?;
    table.cpu("ExecSync true", cpu, wall, Some(2.0));
    for (name, kind) in [("daemon", Kind::Daemon), ("supervisor", Kind::Supervisor), ("its children", Kind::Children)] {
        table.cpu(
            format!("  of that, {name}"),
            serial.of(|sample| sample.of(kind))? / u32::try_from(count)?,
            Duration::ZERO,
            None,
        );
    }
    let together = Watch::start(account)?;
    for _ in 0..count / 10 {
        try_join_all((0..10).map(|_| node.exec(&id, &["true"]))).await?;
    }
    let (cpu, wall) = together.each(count)?;
    table.cpu("ExecSync true, ten at once", cpu, wall, Some(2.0));
    node.remove_container(&id).await?;
    node.remove_pod(&pod).await
}

/// `cat` of a large file through the streaming server.
pub async fn stream(node: &Node, account: &Account, table: &mut Table, megabytes: u64) -> anyhow::Result<()> {
    let pod = node.run_pod().await?;
    let id = node.create(&pod, &SLEEP).await?;
    node.start_container(&id).await?;
    node.make_large(&id, megabytes * 1_000_000).await?;
    let watch = Watch::start(account)?;
    node.stream(&id, megabytes * 1_000_000).await?;
    let (cpu, wall) = watch.each(1)?;
    let throughput = megabytes as f64 / wall.as_secs_f64();
    let what = format!("exec cat of {megabytes} MB ({throughput:.0} MB/s)");
    table.cpu(what, cpu, wall, Some(megabytes as f64));
    node.remove_container(&id).await?;
    node.remove_pod(&pod).await
}

/// Pods at once: empty ones, and whole ones with a container.
pub async fn together(node: &mut Node, account: &mut Account, table: &mut Table, count: usize) -> anyhow::Result<()> {
    sandboxes(node, account, table, count, count).await?;
    containers(node, account, table, count, count).await?;
    let before = account.sample()?.total();
    let started = Instant::now();
    let full = up(node, account, count, count, true).await?;
    let up_wall = started.elapsed();
    let end = down(node, account, before, &full.pods, count).await?;
    let (life, down_wall) = (end.life / u32::try_from(count)?, end.stop_wall + end.remove_wall);
    table.cpu(format!("{count} pods at once, whole life of one"), life, up_wall + down_wall, Some(16.0));
    table.cpu("  all up (wall; goal 150 ms)", Duration::ZERO, up_wall, None);
    table.cpu("  all stopped and removed (wall)", Duration::ZERO, down_wall, None);
    Ok(())
}

/// A log of lines of 100 bytes.
pub async fn log(node: &Node, account: &Account, table: &mut Table, megabytes: u64) -> anyhow::Result<()> {
    let pod = node.run_pod().await?;
    let line = "x".repeat(99);
    let script = format!("yes {line} | head -c {}", megabytes * 1_000_000);
    let id = node.create(&pod, &["sh", "-c", &script]).await?;
    let watch = Watch::start(account)?;
    node.start_container(&id).await?;
    node.wait(&id).await?;
    let wall = watch.started.elapsed();
    let ours = watch.of(Sample::of_ourselves)?;
    let daemon = watch.of(|sample| sample.of(Kind::Daemon))?;
    let (all, _) = watch.each(1)?;
    table.cpu(format!("a log of {megabytes} MB: supervisor and daemon"), ours, wall, Some(megabytes as f64 * 1.25));
    table.cpu("  of that, daemon", daemon, Duration::ZERO, None);
    table.cpu("  with the container that writes it", all, wall, None);
    node.remove_container(&id).await?;
    node.remove_pod(&pod).await
}

/// Many pods at rest: memory, lists, and what nothing costs.
pub async fn rest(node: &Node, account: &Account, table: &mut Table, most: usize) -> anyhow::Result<()> {
    let mut pods = Vec::new();
    memory_of(node, account, table, 0)?;
    for step in [1, 10, most] {
        while pods.len() < step {
            let pod = node.run_pod().await?;
            let id = node.create(&pod, &SLEEP).await?;
            node.start_container(&id).await?;
            pods.push((pod, vec![id]));
        }
        memory_of(node, account, table, step)?;
    }
    list(node, account, table, most, if most == 100 { Some(0.1) } else { None }).await?;
    let first = pods.first().and_then(|(_, ids)| ids.first()).context("a container")?.clone();
    polling::status(node, account, table, &first, most).await?;
    polling::lists(node, account, table, most).await?;
    polling::minute(node, account, table, most).await?;
    for (containers, goal) in [(3, 0.2), (5, 0.5)] {
        for (pod, ids) in &mut pods {
            while ids.len() < containers {
                let id = node.create(pod, &["true"]).await?;
                node.start_container(&id).await?;
                ids.push(id);
            }
        }
        list(node, account, table, most * containers, (most == 100).then_some(goal)).await?;
    }
    polling::status(node, account, table, &first, most * 5).await?;
    let watch = Watch::start(account)?;
    tokio::time::sleep(REST).await;
    let (cpu, _) = watch.each(1)?;
    let minute = cpu.mul_f64(60.0 / REST.as_secs_f64());
    table.cpu(format!("at rest with {most} pods, a minute"), minute, REST, Some(100.0));
    for (pod, ids) in &pods {
        for id in ids {
            node.remove_container(id).await?;
        }
        node.remove_pod(pod).await?;
    }
    memory_of(node, account, table, 0)
}

async fn list(
    node: &Node,
    account: &Account,
    table: &mut Table,
    expected: usize,
    goal: Option<f64>,
) -> anyhow::Result<()> {
    let mut runtime = node.runtime.clone();
    let watch = Watch::start(account)?;
    for _ in 0..LISTS {
        let answer = runtime.list_containers(cri::ListContainersRequest::default()).await.context("ListContainers")?;
        let count = answer.into_inner().containers.len();
        anyhow::ensure!(count == expected, "{count} containers are listed, there are {expected}");
    }
    let (cpu, wall) = watch.each(LISTS as usize)?;
    table.cpu(format!("ListContainers with {expected}"), cpu, wall, goal);
    Ok(())
}

fn memory_of(node: &Node, account: &Account, table: &mut Table, pods: usize) -> anyhow::Result<()> {
    let daemon = memory::of(node.daemon_pid());
    let goal = match pods {
        0 => Some(15.0),
        100 => Some(30.0),
        _ => None,
    };
    table.memory(format!("daemon with {pods} pods, RSS"), Some(daemon.rss), goal);
    table.memory(format!("daemon with {pods} pods, PSS"), daemon.pss, None);
    if let Some(template) = account.template()? {
        table.memory(format!("template with {pods} pods, PSS"), memory::of(template).pss, None);
    }
    if pods > 0 {
        let supervisors = account.supervisors()?;
        anyhow::ensure!(supervisors.len() == pods, "{} supervisors for {pods} pods", supervisors.len());
        let mean = memory::mean(&supervisors);
        let goal = match pods {
            1 => Some(2.0),
            100 => Some(0.8),
            _ => None,
        };
        table.memory(format!("a supervisor of {pods}, PSS"), mean.pss, goal);
        table.memory("  of that, its own memory", mean.pss_anonymous, None);
    }
    Ok(())
}
