//! `cricket stop`: ends the daemon, and then the node unless pods run in it; with `--pods`, the pods and whatever else
//! runs in the node: containers first, each by its own stop signal while the daemon is there to send it, then the pods.
//! Ending what has ended is no error. Mounts and networks go with their namespaces, the way out with the node; what the
//! built-in network made in a namespace that is not the node's own is taken away when no pod is left.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

use super::Settings;
use super::client::{Client, told};
use crate::config::Config;
use crate::daemon;
use crate::executor::client::{ExecutorError, Supervisor};
use crate::executor::leftovers;
use crate::network::outbound::{self, Outbound};
use crate::network::{self, ports};
use crate::proto::cri;
use crate::proto::supervisor::{Shutdown, request::Op};
use crate::rootless::{NodeRecord, cgroups};
use crate::store::Lock;
use crate::sys::namespace::Namespace;
use crate::sys::process::{ProcessId, end_all};

/// The unix sockets of this network namespace, which is the daemon's: "Num RefCount Protocol Flags Type St Inode Path".
const SOCKETS: &str = "/proc/net/unix";
/// The daemon lets calls under way end for half of it.
const DAEMON_PATIENCE: Duration = Duration::from_secs(10);
/// Containers' own programs may use it to end well.
const PODS_GRACE: Duration = Duration::from_secs(5);
/// For a supervisor to do it and to say so.
const PODS_PATIENCE: Duration = Duration::from_secs(15);
/// The node process does nothing that takes time; a kubelet in the node may.
const NODE_PATIENCE: Duration = Duration::from_secs(5);
/// Processes may start others while they are ended.
const ROUNDS: usize = 5;

/// Arguments of `cricket stop`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End the pods too, and everything else that runs in the node
    #[arg(long)]
    pods: bool,
}

/// Ends it and says what it ended.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let settings = &of_state(settings)?;
    let config = settings.load()?;
    let mut said = Vec::new();
    let living = living_pods(&config.state)?;
    if args.pods {
        stop_by_daemon(&config, settings)?;
    }
    said.extend(end_daemon(&config)?);
    match (args.pods, living.len()) {
        (_, 0) => {}
        (true, count) => said.push(format!("ended {count} pod(s)")),
        (false, count) => said.push(format!("{count} pod(s) run on; `cricket stop --pods` ends them")),
    }
    if args.pods {
        // The daemon may have made others meanwhile, or not been there to end these.
        end_pods(living_pods(&config.state)?, &config.state)?;
        said.extend(end_others(&config.state)?);
    }
    if args.pods || living.is_empty() {
        ports::stop(&config.state).context("ending the forwarder of host ports")?;
        end_network(&config)?;
    }
    said.extend(end_node(&config.state)?);
    if said.is_empty() {
        said.push(format!("nothing to stop: no cricket runs with the state directory {}", config.state.display()));
    }
    said.iter().try_for_each(|line| super::table::say(line))?;
    Ok(ExitCode::SUCCESS)
}

/// The state names the instance: the root that its daemon had goes with it.
fn of_state(settings: &Settings) -> anyhow::Result<Settings> {
    let config = settings.load()?;
    let (state, named) = (config.state.display(), &settings.root);
    match daemon::root_of(&config.state)?.filter(|root| *root != config.root) {
        None => Ok(settings.clone()),
        Some(root) if named.is_none() => Ok(Settings { root: Some(root), ..settings.clone() }),
        Some(root) => bail!("the state {state} is that of the root {}: name both, or the state alone", root.display()),
    }
}

/// Asks the daemon, if one answers, to stop every pod. What it does not is done without it.
fn stop_by_daemon(config: &Config, settings: &Settings) -> anyhow::Result<()> {
    if Lock::holder(&config.root)?.is_none() {
        return Ok(());
    }
    let work = async {
        let mut client = Client::connect(settings).await?;
        let all = cri::ListContainersRequest::default();
        let containers = client.runtime.list_containers(all).await.map_err(told)?.into_inner().containers;
        let stops = containers.into_iter().map(|container| {
            let (container_id, mut runtime) = (container.id, client.runtime.clone());
            let request = cri::StopContainerRequest { container_id, timeout: PODS_GRACE.as_secs() as i64 };
            async move { runtime.stop_container(request).await }
        });
        futures_util::future::join_all(stops).await;
        let all = cri::ListPodSandboxRequest::default();
        let pods = client.runtime.list_pod_sandbox(all).await.map_err(told)?.into_inner().items;
        let ready = pods.into_iter().filter(|pod| pod.state() == cri::PodSandboxState::SandboxReady);
        let stops = ready.map(|pod| {
            let mut runtime = client.runtime.clone();
            async move { runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod.id }).await }
        });
        futures_util::future::join_all(stops).await;
        anyhow::Ok(())
    };
    let _ = block_on(async { tokio::time::timeout(PODS_PATIENCE, work).await })?;
    Ok(())
}

fn end_daemon(config: &Config) -> anyhow::Result<Option<String>> {
    let Some(daemon) = Lock::holder(&config.root)? else {
        remove_stale_socket(&config.socket);
        return Ok(None);
    };
    daemon.end(DAEMON_PATIENCE).with_context(|| format!("ending the daemon (pid {})", daemon.pid))?;
    remove_stale_socket(&config.socket);
    Ok(Some(format!("ended the daemon (pid {})", daemon.pid)))
}

/// A daemon that was killed leaves its socket. Nobody is called to find out: one that systemd holds would start the
/// daemon again.
fn remove_stale_socket(socket: &Path) {
    let sockets = std::fs::read_to_string(SOCKETS).unwrap_or_default();
    let is_bound = sockets.lines().any(|line| line.split_ascii_whitespace().nth(7).map(Path::new) == Some(socket));
    let is_socket = std::fs::symlink_metadata(socket).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && !is_bound {
        let _ = std::fs::remove_file(socket);
    }
}

/// Directories of pods, whether they live or not.
fn pod_directories(state: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(state.join("pods")).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
}

fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
    Ok(runtime.block_on(work))
}

/// Pods whose supervisor is there; whether it answers in time is another matter.
fn living_pods(state: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let directories = pod_directories(state);
    block_on(async move {
        let looks = directories.into_iter().map(async |directory| {
            let hello = tokio::time::timeout(PODS_PATIENCE, Supervisor::connect(&directory)).await;
            (!matches!(hello, Ok(Err(ExecutorError::Gone)))).then_some(directory)
        });
        futures_util::future::join_all(looks).await.into_iter().flatten().collect()
    })
}

/// Asks every supervisor to end its pod, all at once; then sees that nothing is left of any pod.
fn end_pods(living: Vec<PathBuf>, state: &Path) -> anyhow::Result<()> {
    block_on(async move {
        let ends = living.into_iter().map(|directory| tokio::time::timeout(PODS_PATIENCE, end_pod(directory)));
        futures_util::future::join_all(ends).await
    })?;
    for directory in pod_directories(state) {
        let left = leftovers::kill(&directory);
        left.with_context(|| format!("ending what is left of {}", directory.display()))?;
    }
    Ok(())
}

/// That it fails is no error here: what is left of the pod is killed next.
async fn end_pod(directory: PathBuf) {
    if let Ok((supervisor, _)) = Supervisor::connect(&directory).await {
        let _ = supervisor.call(Op::Shutdown(Shutdown { grace_ms: PODS_GRACE.as_millis() as u64 })).await;
    }
}

/// The way out and the forwarder of host ports: they go with the node.
fn helpers(state: &Path, node: &NodeRecord) -> anyhow::Result<Vec<ProcessId>> {
    let ours = Outbound::running(state).into_iter().chain(ports::running(state));
    Ok(ours.chain(unrecorded_ways_out(node)?).collect())
}

/// Those of the node that no record names.
fn unrecorded_ways_out(node: &NodeRecord) -> anyhow::Result<Vec<ProcessId>> {
    let network = node.namespaces.get(&Namespace::Network);
    network.map_or_else(|| Ok(Vec::new()), |network| outbound::serving(*network)).context("looking for the way out")
}

/// Whatever else is in a node that we made: a kubelet, a shell, a process that left its pod.
fn end_others(state: &Path) -> anyhow::Result<Option<String>> {
    let Some(record) = NodeRecord::read(state)? else { return Ok(None) };
    let ours = helpers(state, &record)?;
    let mut count = 0;
    for _ in 0..ROUNDS {
        let others: Vec<_> = record
            .members()
            .context("looking into the node")?
            .into_iter()
            .filter(|other| *other != record.process && !ours.contains(other))
            .collect();
        if others.is_empty() {
            break;
        }
        count += end_all(&others, NODE_PATIENCE).context("ending what runs in the node")?;
    }
    Ok((count > 0).then(|| format!("ended {count} other process(es) of the node")))
}

/// Of root's and of a node that was found: another one's network goes with the node.
fn end_network(config: &Config) -> anyhow::Result<()> {
    let is_here = nix::unistd::geteuid().is_root() && NodeRecord::read(&config.state)?.is_none();
    if is_here { Ok(network::dismantle(&config.network_name)?) } else { Ok(()) }
}

/// The node, unless somebody is in it: it is theirs too.
fn end_node(state: &Path) -> anyhow::Result<Option<String>> {
    let Some(record) = NodeRecord::read(state)? else { return Ok(None) };
    let ours = helpers(state, &record)?;
    let members = record.members().context("looking into the node")?;
    let others = members.iter().filter(|member| **member != record.process && !ours.contains(member)).count();
    if others > 0 {
        return Ok(Some(format!("the node (pid {}) is kept for {others} process(es) in it", record.process.pid)));
    }
    let ways_out = unrecorded_ways_out(&record)?;
    Outbound::stop(state).context("ending the way out of the node")?;
    end_all(&ways_out, NODE_PATIENCE).context("ending the way out of the node")?;
    let was_there = record.is_live() && record.process.end(NODE_PATIENCE).context("ending the node process")?;
    NodeRecord::remove(state)?;
    if let Some(base) = &record.cgroup {
        cgroups::clear(base);
    }
    Ok(was_there.then(|| format!("ended the node (pid {})", record.process.pid)))
}
