//! Statistics of pods and containers: what they use now, without asking their supervisors.
//!
//! ```text
//!   cgroup.rs     the files of a cgroup v2            '
//!   processes.rs  the substitute where there is none   }--> reading.rs --> message.rs (CRI stats), metrics.rs (CRI metrics)
//!   network.rs    counters of the pod's interfaces    '
//! ```
//!
//! The writable layer is measured by the image service in the background; a call repeats what was measured last, and
//! waits only for containers that were never measured, and not for long.

mod cgroup;
pub(crate) mod descriptors;
mod message;
mod metrics;
mod network;
mod processes;
mod reading;
mod samples;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::pod::context::{Context, blocking, pod_modes};
use crate::pod::error::PodError;
use crate::pod::queue::Phase;
use crate::pod::view::{ContainerView, PodView};
use crate::proto::{cri, supervisor as wire};
use crate::store::ContainerId;

use network::Interface;
use processes::{PodReadings, Processes, Snapshot};
use reading::{Depth, Reading};
use samples::Samples;

/// How long a call waits for the first measurement of containers' layers.
const FIRST_MEASURE_WAIT: Duration = Duration::from_millis(200);

/// What is kept between calls.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    processes: Processes,
    samples: Samples,
}

impl Stats {
    /// A pod or a container is removed.
    pub(crate) fn forget(&self, id: &str) {
        self.samples.forget(id);
    }
}

/// What a container uses.
pub(crate) struct ContainerFigures {
    pub(crate) view: Arc<ContainerView>,
    /// None: it does not run.
    pub(crate) reading: Option<Reading>,
    /// Nanoseconds of processor a second.
    pub(crate) rate: Option<u64>,
    pub(crate) layer: Option<cri::FilesystemUsage>,
    /// Its processes; only for metrics.
    pub(crate) pids: Vec<i32>,
}

/// What a pod uses.
pub(crate) struct PodFigures {
    pub(crate) view: Arc<PodView>,
    pub(crate) at: i64,
    /// None: it does not run.
    pub(crate) reading: Option<Reading>,
    pub(crate) rate: Option<u64>,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) containers: Vec<ContainerFigures>,
}

/// What a call wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Containers,
    Pods(Depth),
}

impl Scope {
    fn depth(self) -> Depth {
        match self {
            Self::Containers => Depth::Stats,
            Self::Pods(depth) => depth,
        }
    }
}

fn is_alive(view: &ContainerView) -> bool {
    view.phase != Phase::Exited
}

/// Of one container, which may have exited: then only its layer is told.
pub(crate) async fn of_container(
    context: &Arc<Context>,
    pod: Arc<PodView>,
    container: Arc<ContainerView>,
) -> Result<cri::ContainerStats, PodError> {
    let id = container.record.id.clone();
    let only = PodView { containers: [(id, container)].into(), ..(*pod).clone() };
    let figures = gather(context, vec![Arc::new(only)], Scope::Containers).await?;
    let first = figures.iter().flat_map(|pod| &pod.containers).next();
    first.map(message::container).ok_or_else(|| PodError::internal("a container's statistics were lost"))
}

/// Of those containers that live and that `wanted` names.
pub(crate) async fn of_containers(
    context: &Arc<Context>,
    views: Vec<Arc<PodView>>,
    wanted: impl Fn(&ContainerView) -> bool,
) -> Result<Vec<cri::ContainerStats>, PodError> {
    let chosen = views.iter().filter_map(|pod| {
        let containers = pod.containers.iter().filter(|(_, c)| is_alive(c) && wanted(c));
        let containers: std::collections::BTreeMap<_, _> =
            containers.map(|(id, c)| (id.clone(), Arc::clone(c))).collect();
        (!containers.is_empty()).then(|| Arc::new(PodView { containers, ..(**pod).clone() }))
    });
    let figures = gather(context, chosen.collect(), Scope::Containers).await?;
    Ok(figures.iter().flat_map(|pod| &pod.containers).map(message::container).collect())
}

/// Of pods with those of their containers that live.
pub(crate) async fn of_pods(
    context: &Arc<Context>,
    views: Vec<Arc<PodView>>,
) -> Result<Vec<cri::PodSandboxStats>, PodError> {
    let figures = gather(context, views.iter().map(living).collect(), Scope::Pods(Depth::Stats)).await?;
    Ok(figures.iter().map(message::pod).collect())
}

/// The metrics of pods that run.
pub(crate) async fn metrics_of_pods(
    context: &Arc<Context>,
    views: Vec<Arc<PodView>>,
) -> Result<Vec<cri::PodSandboxMetrics>, PodError> {
    let views = views.iter().filter(|view| view.ready).map(living).collect();
    let figures = gather(context, views, Scope::Pods(Depth::Metrics)).await?;
    // Looking at descriptors and limits of processes is reading files too.
    let written = context.images.snapshot_directory().to_owned();
    blocking(move || {
        let space = metrics::Space::of(&written);
        Ok(figures.iter().map(|pod| metrics::of_pod(pod, space)).collect())
    })
    .await
}

fn living(view: &Arc<PodView>) -> Arc<PodView> {
    if view.containers.values().all(|c| is_alive(c)) {
        return Arc::clone(view);
    }
    let mut view = (**view).clone();
    view.containers.retain(|_, container| is_alive(container));
    Arc::new(view)
}

async fn gather(context: &Arc<Context>, views: Vec<Arc<PodView>>, scope: Scope) -> Result<Vec<PodFigures>, PodError> {
    let layers = layers(context, &views).await;
    let context = Arc::clone(context);
    blocking(move || {
        // One look at the machine's processes serves all pods that have no cgroup.
        let needs_processes = views.iter().any(|view| view.supervisor.is_some() && view.record.cgroup.is_none());
        let snapshot = needs_processes.then(|| context.stats.processes.snapshot());
        Ok(views.into_iter().map(|view| read_pod(&context.stats, view, scope, snapshot.as_deref(), &layers)).collect())
    })
    .await
}

type Layers = HashMap<ContainerId, cri::FilesystemUsage>;

/// What containers wrote, as last measured.
async fn layers(context: &Arc<Context>, views: &[Arc<PodView>]) -> Layers {
    let ids = || views.iter().flat_map(|view| view.containers.keys());
    let unmeasured: Vec<String> =
        ids().filter(|id| context.images.measured(id.as_str()).is_none()).map(ToString::to_string).collect();
    if !unmeasured.is_empty() {
        // It goes on when nobody waits any more.
        let _ = tokio::time::timeout(FIRST_MEASURE_WAIT, context.images.measure(unmeasured)).await;
    }
    context.images.measure_again();
    let found = ids().filter_map(|id| {
        let (age, usage) = context.images.measured(id.as_str())?;
        let timestamp = crate::pod::events::now() - i64::try_from(age.as_nanos()).unwrap_or_default();
        let value = |value: u64| Some(cri::UInt64Value { value });
        let mountpoint = usage.mountpoint.to_string_lossy().into_owned();
        let usage = cri::FilesystemUsage {
            timestamp,
            fs_id: Some(cri::FilesystemIdentifier { mountpoint }),
            used_bytes: value(usage.bytes),
            inodes_used: value(usage.inodes),
        };
        Some((id.clone(), usage))
    });
    found.collect()
}

fn read_pod(
    stats: &Stats,
    view: Arc<PodView>,
    scope: Scope,
    snapshot: Option<&Snapshot>,
    layers: &Layers,
) -> PodFigures {
    let at = crate::pod::events::now();
    let runs = view.supervisor.is_some();
    let mut readings = match (&view.record.cgroup, snapshot) {
        _ if !runs => PodReadings::default(),
        (Some(cgroup), _) => from_cgroups(&view, cgroup, scope, at),
        (None, Some(snapshot)) => from_processes(&view, scope, snapshot),
        (None, None) => PodReadings::default(),
    };
    let mut found = std::mem::take(&mut readings.containers).into_iter();
    let containers = view.containers.iter().map(|(id, container)| {
        let (reading, pids) = found.next().flatten().unwrap_or_default();
        let mut reading = Some(reading).filter(|reading: &Reading| reading.at != 0);
        ContainerFigures {
            view: Arc::clone(container),
            rate: sample(stats, id.as_str(), reading.as_mut()),
            reading,
            layer: layers.get(id).cloned(),
            pids,
        }
    });
    let containers = containers.collect();
    let whole = scope != Scope::Containers && runs;
    let mut reading = readings.pod.filter(|_| whole);
    // On the node's network the counters are the node's, not the pod's.
    let own_network = pod_modes(&view.record.config).network != wire::NamespaceMode::Node;
    let interfaces = if whole && own_network { network::read(view.record.pid) } else { Vec::new() };
    let rate = sample(stats, view.record.id.as_str(), reading.as_mut());
    PodFigures { at, reading, rate, interfaces, containers, view }
}

/// Makes the counter one that does not go back; answers the rate.
fn sample(stats: &Stats, id: &str, reading: Option<&mut Reading>) -> Option<u64> {
    let reading = reading?;
    let (usage, rate) = stats.samples.next(id, reading.at, reading.cpu.usage?);
    reading.cpu.usage = Some(usage);
    rate
}

fn from_cgroups(view: &PodView, pod: &Path, scope: Scope, at: i64) -> PodReadings {
    let depth = scope.depth();
    let containers = view.containers.values().map(|container| {
        if !is_alive(container) {
            return None;
        }
        let directory = crate::pod::cgroup::directory(&container.record.cgroup);
        of_cgroup(&directory, depth, at, depth == Depth::Metrics)
    });
    let containers = containers.collect();
    let directory = crate::pod::cgroup::directory(pod);
    let whole = (scope != Scope::Containers).then(|| of_cgroup(&directory, depth, at, true)).flatten();
    PodReadings { pod: whole.map(|(reading, _)| reading), containers }
}

/// A cgroup's files, and of its processes what only these tell: how many they are, and without a controller for memory
/// what they hold. None: it is gone.
fn of_cgroup(directory: &Path, depth: Depth, at: i64, count: bool) -> Option<(Reading, Vec<i32>)> {
    let mut reading = cgroup::read(directory, depth, at).ok()?;
    let uncounted = reading.memory.usage.is_none();
    if !count && !uncounted {
        return Some((reading, Vec::new()));
    }
    let pids = cgroup::processes(directory);
    reading.processes = Some(pids.len() as u64);
    if uncounted {
        reading.memory = processes::memory(&pids);
    }
    Some((reading, pids))
}

fn from_processes(view: &PodView, scope: Scope, snapshot: &Snapshot) -> PodReadings {
    let alive = |container: &ContainerView| if is_alive(container) { container.record.pid } else { 0 };
    let firsts: Vec<i32> = view.containers.values().map(|container| alive(container)).collect();
    let mut readings = snapshot.pod(view.record.pid, &firsts);
    if scope.depth() == Depth::Stats {
        readings.containers.iter_mut().flatten().for_each(|(_, pids)| pids.clear());
    }
    readings
}
