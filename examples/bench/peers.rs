//! The same requests to several daemons that somebody else has started, turn by turn: `scripts/beside` starts them,
//! each in a cgroup of its own.
//!
//! CPU time is what the kernel counts for the cgroup and those below it (`cpu.stat` of cgroup v2, which needs no
//! controller): daemon, shims, runtimes, containers. What a daemon still does after its answer is in the next row's
//! figure, never lost. Pods are on the node's network in all of them, for the peer has no CNI plugins here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use comfy_table::{CellAlignment, Table as Grid, presets};
use cricket::proto::cri;
use futures_util::future::try_join_all;

use super::node::Node;
use super::pods::Pod;
use super::stages::SLEEP;

/// Pods one after another in a round, and at once.
const PODS: usize = 10;
/// Execs for one figure.
const EXECS: u32 = 20;
/// Containers of a pod of which there are [`PODS`], for lists.
const CONTAINERS: usize = 10;
/// Calls of a list, and of statistics, for one figure.
const LISTS: u32 = 100;
const STATISTICS: u32 = 5;
/// Megabytes through exec.
const MEGABYTES: u64 = 200;

/// What is compared.
#[derive(Debug, Parser)]
pub struct Beside {
    /// NAME=SOCKET=CGROUP of each daemon; ratios are to the first
    #[arg(required = true)]
    daemons: Vec<String>,
    /// Where pods log
    #[arg(long)]
    directory: PathBuf,
    /// The image's name
    #[arg(long)]
    image: String,
    /// How often everything is done; medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// A daemon, and what was measured of it: by row, in each round.
struct Peer {
    name: String,
    node: Node,
    cgroup: PathBuf,
    rows: Vec<(&'static str, Vec<Figure>)>,
}

#[derive(Clone, Copy)]
struct Figure {
    cpu: f64,
    wall: f64,
}

impl Peer {
    fn of(text: &str, args: &Beside) -> anyhow::Result<Self> {
        let mut parts = text.split('=');
        let mut part = || parts.next().context("NAME=SOCKET=CGROUP is expected");
        let (name, socket, cgroup) = (part()?.to_owned(), part()?, part()?);
        let mut node = Node::of_other(socket.as_ref(), &args.directory.join(&name));
        (node.network, node.image) = (cri::NamespaceMode::Node, args.image.clone());
        Ok(Self { name, node, cgroup: cgroup.into(), rows: Vec::new() })
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        let path = self.cgroup.join("cpu.stat");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let line = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("usage_usec")?;
        Ok(Duration::from_micros(line.parse()?))
    }

    /// Does `work`, which is `count` operations, and notes what one cost.
    async fn note<T>(
        &mut self,
        row: &'static str,
        count: u32,
        work: impl AsyncFnOnce(&Node) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let (before, started) = (self.cpu()?, Instant::now());
        let result = work(&self.node).await.with_context(|| format!("{}: {row}", self.name))?;
        let (wall, cpu) = (started.elapsed() / count, self.cpu()?.saturating_sub(before) / count);
        let figure = Figure { cpu: cpu.as_secs_f64() * 1e3, wall: wall.as_secs_f64() * 1e3 };
        match self.rows.iter_mut().find(|(name, _)| *name == row) {
            Some((_, figures)) => figures.push(figure),
            None => self.rows.push((row, vec![figure])),
        }
        Ok(result)
    }

    async fn round(&mut self) -> anyhow::Result<()> {
        let n = u32::try_from(PODS)?;
        let pods = self.note("RunPodSandbox", n, run_pods).await?;
        let made = self.note("CreateContainer", n, async |node| create(node, &pods, 1).await).await?;
        self.note("StartContainer", n, async |node| start(node, &made).await).await?;
        let first = made.first().context("a container")?.clone();
        self.note("ExecSync true", EXECS, async |node| {
            for _ in 0..EXECS {
                node.exec(&first, &["true"]).await?;
            }
            Ok(())
        })
        .await?;
        self.node.make_large(&first, MEGABYTES * 1_000_000).await?;
        let streamed =
            self.note("exec cat of 200 MB", 1, async |node| node.stream(&first, MEGABYTES * 1_000_000).await).await;
        self.told(streamed);
        self.note("Stop + RemoveContainer", n, async |node| end(node, &made).await).await?;
        self.note("Stop + RemovePodSandbox", n, async |node| end_pods(node, &pods).await).await?;
        self.together(n).await?;
        self.lists().await
    }

    async fn together(&mut self, n: u32) -> anyhow::Result<()> {
        let work = async |node: &Node| {
            try_join_all((0..PODS).map(|_| async {
                let pod = node.run_pod().await?;
                let id = node.create(&pod, &SLEEP).await?;
                node.start_container(&id).await?;
                anyhow::Ok((pod, id))
            }))
            .await
        };
        let pods = self.note("ten pods at once: up, each", n, work).await?;
        let work = async |node: &Node| {
            let ends = pods.iter().map(async |(pod, id)| {
                node.remove_container(id).await?;
                node.remove_pod(pod).await
            });
            try_join_all(ends).await.map(drop)
        };
        self.note("ten pods at once: away, each", n, work).await
    }

    async fn lists(&mut self) -> anyhow::Result<()> {
        let pods = run_pods(&self.node).await?;
        let ids = create(&self.node, &pods, CONTAINERS).await?;
        start(&self.node, &ids).await?;
        let first = ids.first().context("a container")?.clone();
        let mut runtime = self.node.runtime.clone();
        self.note("ListContainers, 100", LISTS, async |_| {
            for _ in 0..LISTS {
                let list = runtime.list_containers(cri::ListContainersRequest::default()).await?.into_inner();
                anyhow::ensure!(list.containers.len() == PODS * CONTAINERS, "{} containers", list.containers.len());
            }
            Ok(())
        })
        .await?;
        self.note("ContainerStatus, of 100", LISTS, async |_| {
            for _ in 0..LISTS {
                let request = cri::ContainerStatusRequest { container_id: first.clone(), verbose: false };
                runtime.container_status(request).await?;
            }
            Ok(())
        })
        .await?;
        let done = self.note("ListContainerStats, 100", STATISTICS, async |_| {
            for _ in 0..STATISTICS {
                runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await?;
            }
            Ok(())
        });
        let done = done.await;
        self.told(done);
        let done = self.note("ListPodSandboxStats, 10 of 10", STATISTICS, async |_| {
            for _ in 0..STATISTICS {
                runtime.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default()).await?;
            }
            Ok(())
        });
        let done = done.await;
        self.told(done);
        end(&self.node, &ids).await?;
        end_pods(&self.node, &pods).await
    }

    /// Refused here, measured elsewhere: the row stays empty.
    fn told(&self, result: anyhow::Result<()>) {
        if let Err(error) = result {
            eprintln!("{error:#}");
        }
    }

    fn median(&self, row: &str) -> Option<Figure> {
        let figures = &self.rows.iter().find(|(name, _)| *name == row)?.1;
        let middle = |part: fn(&Figure) -> f64| {
            let mut values: Vec<f64> = figures.iter().map(part).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Some(Figure { cpu: middle(|f| f.cpu)?, wall: middle(|f| f.wall)? })
    }
}

async fn run_pods(node: &Node) -> anyhow::Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for _ in 0..PODS {
        pods.push(node.run_pod().await?);
    }
    Ok(pods)
}

async fn create(node: &Node, pods: &[Pod], each: usize) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for pod in pods {
        for _ in 0..each {
            ids.push(node.create(pod, &SLEEP).await?);
        }
    }
    Ok(ids)
}

async fn start(node: &Node, ids: &[String]) -> anyhow::Result<()> {
    for id in ids {
        node.start_container(id).await?;
    }
    Ok(())
}

async fn end(node: &Node, ids: &[String]) -> anyhow::Result<()> {
    for id in ids {
        node.remove_container(id).await?;
    }
    Ok(())
}

async fn end_pods(node: &Node, pods: &[Pod]) -> anyhow::Result<()> {
    for pod in pods {
        node.remove_pod(pod).await?;
    }
    Ok(())
}

/// Measures and prints.
pub async fn compare(args: &Beside) -> anyhow::Result<()> {
    let mut peers = args.daemons.iter().map(|text| Peer::of(text, args)).collect::<anyhow::Result<Vec<_>>>()?;
    for peer in &peers {
        // Caches of the kernel and of the daemon.
        super::stages::warm_up(&peer.node).await.with_context(|| peer.name.clone())?;
    }
    for _ in 0..args.rounds {
        for peer in &mut peers {
            peer.round().await?;
        }
    }
    print(&peers);
    Ok(())
}

fn print(peers: &[Peer]) {
    let mut grid = Grid::new();
    let mut header = vec!["CPU ms / wall ms (ratio of CPU)".to_owned()];
    header.extend(peers.iter().map(|peer| peer.name.clone()));
    grid.load_style(presets::UTF8_BORDERS_ONLY).set_header(header);
    let Some(first) = peers.first() else { return };
    for (name, _) in &first.rows {
        let own = first.median(name);
        let cells = peers.iter().map(|peer| match (peer.median(name), own) {
            (Some(figure), Some(own)) => {
                format!("{:.2} / {:.1} ({:.1})", figure.cpu, figure.wall, figure.cpu / own.cpu)
            }
            _ => String::new(),
        });
        grid.add_row(std::iter::once((*name).to_owned()).chain(cells));
    }
    for index in 1..=peers.len() {
        if let Some(column) = grid.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{grid}");
    println!(
        "Medians of the rounds, of one operation; pods on the node's network, containers with RuntimeDefault's filter."
    );
}
