//! The life of a pod as a whole: brought up, stopped, removed. Each function is one piece of work of the pod's task;
//! one that fails leaves nothing behind.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::executor::client::{ExecutorError, Supervisor};
use crate::executor::leftovers;
use crate::pod::context::{Context, blocking, caught, hostname, pass, pod_modes, reach, text};
use crate::pod::error::{PodError, quoted};
use crate::pod::events::now;
use crate::pod::record::{self, ContainerRecord, PodRecord};
use crate::pod::{cgroup, files, limits, modules, paths, resources, sysctls, update, user_namespace, volumes};
use crate::proto::supervisor::request::Op;
use crate::proto::{cri, supervisor as wire};
use crate::store::{self, PodId};
use crate::sys::crash::Point;

/// Size of a pod's /dev/shm, as everywhere.
const SHM_BYTES: u64 = 64 << 20;
/// The kernel's, for a node's name.
const HOSTNAME_LIMIT_BYTES: usize = 64;
/// How long a supervisor may take to end with everything in it.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(20);

/// What can be said of a request before anything is made.
pub(crate) fn check(context: &Context, config: &cri::PodSandboxConfig, handler: &str) -> Result<(), PodError> {
    context.runtimes.check(handler)?;
    if !config.log_directory.is_empty() {
        paths::on_node("the log directory", &config.log_directory)?;
    }
    let modes = pod_modes(config);
    let (own_network, own_ipc) = (modes.network != wire::NamespaceMode::Node, modes.ipc != wire::NamespaceMode::Node);
    let name = &config.hostname;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_');
    if name.len() > HOSTNAME_LIMIT_BYTES || !plain {
        return Err(PodError::invalid(format!("{:?} is no hostname", quoted(name))));
    }
    if !own_network && !name.is_empty() && *name != context.facts.hostname {
        let own = &context.facts.hostname;
        let message = format!("a pod on the host's network has the host's name, {own}, not {:?}", quoted(name));
        return Err(PodError::invalid(message));
    }
    context.networks.check(config)?;
    let Some(linux) = &config.linux else { return Ok(()) };
    sysctls::check(&linux.sysctls, own_network, own_ipc)?;
    [&linux.resources, &linux.overhead].into_iter().flatten().try_for_each(limits::check)?;
    let security = linux.security_context.clone().unwrap_or_default();
    user_namespace::check(config, &context.facts)?;
    modules::refuse_selinux(security.selinux_options.as_ref(), &context.facts)
}

/// Brings the pod up; the record is durable when this returns.
pub(crate) async fn run(
    context: Arc<Context>,
    id: PodId,
    config: cri::PodSandboxConfig,
    handler: String,
) -> Result<(PodRecord, Supervisor), PodError> {
    let made = caught(bring_up(&context, &id, config, handler)).await;
    if made.is_err() {
        let (disk, state) = (context.layout.pod(&id), context.layout.pod_state(&id));
        let remove = move || {
            leftovers::kill(&state)?;
            paths::remove_tree(&state).and_then(|()| paths::remove_tree(&disk))
        };
        let removed = blocking(remove).await;
        if let Err(error) = removed {
            tracing::warn!(pod = %id, %error, "a pod that failed to start was not wholly removed");
        }
    }
    made
}

async fn bring_up(
    context: &Arc<Context>,
    id: &PodId,
    config: cri::PodSandboxConfig,
    handler: String,
) -> Result<(PodRecord, Supervisor), PodError> {
    let parent = config.linux.as_ref().map_or("", |l| l.cgroup_parent.as_str());
    let cgroup = resources::pod_cgroup(&context.node.cgroups, parent, id.as_str())?;
    let spec = sandbox_spec(context, id, &config, cgroup.as_deref());
    {
        let (context, id, config) = (Arc::clone(context), id.clone(), config.clone());
        let cgroup = cgroup.clone();
        blocking(move || make_directories(&context, &id, &config, cgroup.as_deref())).await?;
    }
    pass(Point::PodDirectories).await?;
    let supervisor = context.template.spawn(spec).await?;
    let mut record = PodRecord {
        version: record::VERSION,
        id: id.clone(),
        config,
        handler,
        created_at: now(),
        stopped: false,
        pid: supervisor.pid(),
        boot_id: context.facts.boot_id.clone(),
        cgroup,
        network: None,
    };
    if let Err(error) = caught(connect_and_record(context, &mut record, &supervisor)).await {
        end_supervisor(context, &record, Some(&supervisor)).await;
        context.networks.abandon(id).await;
        let _ = blocking(move || {
            cgroup::remove(&record, &[] as &[Arc<ContainerRecord>]);
            Ok(())
        })
        .await;
        return Err(error);
    }
    Ok((record, supervisor))
}

async fn connect_and_record(
    context: &Arc<Context>,
    record: &mut PodRecord,
    supervisor: &Supervisor,
) -> Result<(), PodError> {
    pass(Point::PodSpawned).await?;
    if record.config.linux.as_ref().is_some_and(|linux| linux.resources.is_some()) {
        let (context, limited) = (Arc::clone(context), record.clone());
        blocking(move || update::limit_pod(&context, &limited)).await?;
    }
    record.network = context.networks.set_up(record, supervisor).await?;
    pass(Point::PodConnected).await?;
    let (path, copy) = (context.layout.pod_record(&record.id), record.clone());
    blocking(move || Ok(store::write(&path, &copy)?)).await?;
    pass(Point::PodRecorded).await
}

fn make_directories(
    context: &Context,
    id: &PodId,
    config: &cri::PodSandboxConfig,
    cgroup: Option<&Path>,
) -> Result<(), PodError> {
    cgroup.map_or(Ok(()), cgroup::make)?;
    let state = context.layout.pod_state(id);
    files::private_directory(&context.layout.pod(id).join("containers"))?;
    files::private_directory(&state.join("containers"))?;
    files::private_directory(&state.join("shm"))?;
    let node_network = pod_modes(config).network == wire::NamespaceMode::Node;
    let resolvers = context.networks.resolvers();
    files::write(&state, config, hostname(config, &context.facts), node_network, resolvers)?;
    user_namespace::ids(config).map_or(Ok(()), |ids| files::give_to(&state, ids))?;
    match config.log_directory.as_str() {
        "" => Ok(()),
        path => fs::create_dir_all(path).map_err(|e| PodError::io(format_args!("create the log directory {path}"), &e)),
    }
}

fn sandbox_spec(
    context: &Context,
    id: &PodId,
    config: &cri::PodSandboxConfig,
    cgroup: Option<&Path>,
) -> wire::SandboxSpec {
    let modes = pod_modes(config);
    let node_network = modes.network == wire::NamespaceMode::Node;
    let hostname = if node_network { "" } else { hostname(config, &context.facts) };
    wire::SandboxSpec {
        pod_id: id.to_string(),
        state_dir: text(&context.layout.pod_state(id)),
        record_dir: text(&context.layout.pod(id)),
        network: modes.network.into(),
        ipc: modes.ipc.into(),
        pid: modes.pid.into(),
        hostname: hostname.to_owned(),
        sysctls: config.linux.as_ref().map(|l| l.sysctls.clone()).unwrap_or_default(),
        cgroup: cgroup.map(text).unwrap_or_default(),
        shm_size_bytes: SHM_BYTES,
        uid_maps: user_namespace::wire_maps(config),
        gid_maps: user_namespace::wire_maps(config),
        ..Default::default()
    }
}

/// Ends everything that runs in the pod, and then takes its network away. An error is the network's: nothing runs.
async fn end(context: &Context, pod: &PodRecord, supervisor: Option<&Supervisor>) -> Result<(), PodError> {
    end_supervisor(context, pod, supervisor).await;
    pass(Point::PodEnded).await?;
    context.networks.tear_down(&pod.id).await?;
    pass(Point::PodDisconnected).await
}

/// Ends everything that runs in the pod. When the supervisor cannot be asked, what it left is found and killed.
async fn end_supervisor(context: &Context, pod: &PodRecord, supervisor: Option<&Supervisor>) {
    if let Some(supervisor) = supervisor {
        let shutdown = supervisor.call(Op::Shutdown(wire::Shutdown { grace_ms: 0 }));
        match tokio::time::timeout(SHUTDOWN_DEADLINE, shutdown).await {
            Ok(Ok(())) => return,
            Ok(Err(ExecutorError::Gone)) => {}
            Ok(Err(error)) => tracing::warn!(pod = %pod.id, %error, "the supervisor would not end: it is killed"),
            Err(_) => tracing::warn!(pod = %pod.id, "the supervisor does not end: it is killed"),
        }
    }
    if pod.boot_id != context.facts.boot_id {
        return;
    }
    let state = context.layout.pod_state(&pod.id);
    if let Err(error) = blocking(move || Ok(leftovers::kill(&state)?)).await {
        tracing::warn!(pod = %pod.id, %error, "what a supervisor left could not be looked for");
    }
}

/// Stops the pod for good: nothing of it runs, and nothing is left but its records and its containers' files.
pub(crate) async fn stop(
    context: Arc<Context>,
    pod: Arc<PodRecord>,
    containers: Vec<Arc<ContainerRecord>>,
    supervisor: Option<Supervisor>,
) -> Result<(), PodError> {
    let network = end(&context, &pod, supervisor.as_ref()).await;
    blocking(move || {
        cgroup::remove(&pod, &containers);
        paths::remove_tree(&context.layout.pod_state(&pod.id))?;
        // Not stopped yet: whoever asked for it, or the next daemon, takes its network away another time.
        network?;
        reach(Point::PodCleared)?;
        let stopped = PodRecord { stopped: true, ..(*pod).clone() };
        stopped_as_recorded(store::write(&context.layout.pod_record(&pod.id), &stopped))?;
        reach(Point::PodStopped)
    })
    .await
}

/// A full disk does not keep a pod from being stopped: it is what removing the pod may mend. Without the record a
/// restarted daemon finds no supervisor and takes the pod down once more.
fn stopped_as_recorded(written: Result<(), store::RecordError>) -> Result<(), PodError> {
    match written {
        Err(error) if error.is_disk_full() => {
            tracing::warn!(%error, "a pod is stopped, but the disk is too full to write that down");
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Stops the pod and removes every trace of it and of its containers.
pub(crate) async fn remove(
    context: Arc<Context>,
    pod: Arc<PodRecord>,
    containers: Vec<Arc<ContainerRecord>>,
    supervisor: Option<Supervisor>,
) -> Result<(), PodError> {
    end(&context, &pod, supervisor.as_ref()).await?;
    for snapshot in containers.iter().flat_map(|c| volumes::snapshots(&c.id, &c.config)) {
        context.images.remove_snapshot(&snapshot).await?;
    }
    pass(Point::PodUnsnapshot).await?;
    blocking(move || {
        cgroup::remove(&pod, &containers);
        paths::remove_tree(&context.layout.pod_state(&pod.id))?;
        // The record goes last: until then a restarted daemon knows that there is something to remove.
        paths::remove_tree(&context.layout.pod(&pod.id))?;
        reach(Point::PodRemoved)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_does_not_keep_a_pod_from_being_stopped() {
        let failed = |kind: io::ErrorKind| {
            Err(store::RecordError::Io { path: "pod.json".into(), action: "write", source: kind.into() })
        };
        assert!(stopped_as_recorded(failed(io::ErrorKind::StorageFull)).is_ok());
        assert!(stopped_as_recorded(failed(io::ErrorKind::QuotaExceeded)).is_ok());
        assert!(stopped_as_recorded(failed(io::ErrorKind::PermissionDenied)).is_err());
    }
}
