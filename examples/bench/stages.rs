//! What is measured, stage by stage. Goals are those of SPECIFICATION.md.

use std::time::{Duration, Instant};

use anyhow::Context;
use cricket::proto::cri;
use futures_util::future::try_join_all;

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

async fn up(node: &Node, account: &Account, count: usize, with_container: bool) -> anyhow::Result<Up> {
    let watch = Watch::start(account)?;
    let mut pods = Vec::new();
    for _ in 0..count {
        pods.push(one_up(node, with_container).await?);
    }
    let (cpu, wall) = watch.each(count)?;
    Ok(Up { pods, cpu, wall })
}

/// Ends pods by another daemon (see account.rs). Answers CPU time since `before`, without what that daemon's start cost,
/// and the wall time of the end.
async fn down(
    node: &mut Node,
    account: &mut Account,
    before: Duration,
    pods: &[(Pod, Option<String>)],
    at_once: bool,
) -> anyhow::Result<(Duration, Duration)> {
    node.restart().await?;
    let start = account.follow(node.daemon_pid())?;
    let started = Instant::now();
    let node = &*node;
    let removals = pods.iter().map(|(pod, container)| async move {
        if let Some(id) = container {
            node.remove_container(id).await?;
        }
        node.remove_pod(pod).await
    });
    if at_once {
        try_join_all(removals).await?;
    } else {
        for removal in removals {
            removal.await?;
        }
    }
    let wall = started.elapsed();
    let all = account.sample()?.total().saturating_sub(before);
    Ok((all.saturating_sub(start), wall))
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
    let before = account.sample()?.total();
    let empty = up(node, account, count, false).await?;
    let (empty_life, empty_down) = down(node, account, before, &empty.pods, false).await?;
    table.cpu("RunPodSandbox", empty.cpu, empty.wall, Some(5.0));
    let end = (empty_life / n).saturating_sub(empty.cpu);
    table.cpu("StopPodSandbox + RemovePodSandbox", end, empty_down / n, None);
    let run_without_network = run_without_network(node, account, table, count).await?;

    let before = account.sample()?.total();
    let full = up(node, account, count, true).await?;
    let (life, full_down) = down(node, account, before, &full.pods, false).await?;
    let container = life.saturating_sub(empty_life) / n;
    table.cpu("container: create, start, stop, remove", container, Duration::ZERO, None);
    table.cpu("whole life of a pod with a container", life / n, full.wall + full_down / n, Some(16.0));
    table.cpu("  up (wall)", Duration::ZERO, full.wall, None);
    table.cpu("  stop and remove (wall)", Duration::ZERO, full_down / n, None);
    Ok(Pods { run: empty.cpu, run_without_network, life: life / n })
}

async fn run_without_network(
    node: &mut Node,
    account: &mut Account,
    table: &mut Table,
    count: usize,
) -> anyhow::Result<Duration> {
    let usual = std::mem::replace(&mut node.network, cri::NamespaceMode::Node);
    let before = account.sample()?.total();
    let up = up(node, account, count, false).await?;
    down(node, account, before, &up.pods, false).await?;
    node.network = usual;
    table.cpu("RunPodSandbox on the node's network", up.cpu, up.wall, None);
    Ok(up.cpu)
}

/// What the goals are about: sums of what the stages measured, for the kernel tells the CPU time of a living supervisor's
/// children in steps of ten milliseconds, too coarse for one container a pod.
pub fn whole_pods(table: &mut Table, pods: &Pods, create_and_start: Duration) {
    let up = pods.run + create_and_start;
    table.cpu("whole pod up: run, create, start", up, Duration::ZERO, None);
    let without = pods.run_without_network + create_and_start;
    table.cpu("  without the pod network's share", without, Duration::ZERO, Some(11.0));
    let end = pods.life.saturating_sub(up);
    table.cpu("stop and remove container and pod", end, Duration::ZERO, Some(5.0));
}

/// Containers in one pod. Answers the CPU time to create and start one.
pub async fn containers(node: &Node, account: &Account, table: &mut Table, count: usize) -> anyhow::Result<Duration> {
    let pod = node.run_pod().await?;
    let create = Watch::start(account)?;
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(node.create(&pod, &SLEEP).await?);
    }
    let (create, create_wall) = create.each(count)?;
    let start = Watch::start(account)?;
    for id in &ids {
        node.start_container(id).await?;
    }
    let (start, start_wall) = start.each(count)?;
    let remove = Watch::start(account)?;
    for id in &ids {
        node.remove_container(id).await?;
    }
    let (remove, remove_wall) = remove.each(count)?;
    table.cpu("CreateContainer", create, create_wall, None);
    table.cpu("StartContainer", start, start_wall, None);
    table.cpu("Create + StartContainer", create + start, create_wall + start_wall, Some(6.0));
    table.cpu("StopContainer + RemoveContainer", remove, remove_wall, None);
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

/// Pods at once.
pub async fn together(node: &mut Node, account: &mut Account, table: &mut Table, count: usize) -> anyhow::Result<()> {
    let before = account.sample()?.total();
    let started = Instant::now();
    let pods = try_join_all((0..count).map(|_| one_up(node, true))).await?;
    let up_wall = started.elapsed();
    let (life, down_wall) = down(node, account, before, &pods, true).await?;
    let life = life / u32::try_from(count)?;
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
