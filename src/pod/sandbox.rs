//! The life of a pod as a whole: brought up, stopped, removed. Each function is one piece of work of the pod's task;
//! one that fails leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::executor::client::{ExecutorError, Supervisor};
use crate::pod::context::{Context, blocking, hostname, pod_modes, text};
use crate::pod::error::{PodError, quoted};
use crate::pod::events::now;
use crate::pod::record::{self, ContainerRecord, PodRecord};
use crate::pod::{files, paths, process, resources, sysctls};
use crate::proto::supervisor::request::Op;
use crate::proto::{cri, supervisor as wire};
use crate::store::{self, ContainerId, PodId};

/// Size of a pod's /dev/shm, as everywhere.
const SHM_BYTES: u64 = 64 << 20;
/// The kernel's, for a node's name.
const HOSTNAME_LIMIT_BYTES: usize = 64;
/// How long a supervisor may take to end with everything in it.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(20);
/// The node's cgroup file system.
const CGROUP_MOUNT: &str = "/sys/fs/cgroup";

/// What can be said of a request before anything is made.
pub(crate) fn check(context: &Context, config: &cri::PodSandboxConfig, handler: &str) -> Result<(), PodError> {
    if !handler.is_empty() {
        return Err(PodError::invalid(format!(
            "there is no runtime handler {:?} in the configuration",
            quoted(handler)
        )));
    }
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
    let Some(linux) = &config.linux else { return Ok(()) };
    sysctls::check(&linux.sysctls, own_network, own_ipc)?;
    let security = linux.security_context.clone().unwrap_or_default();
    let options = security.namespace_options.unwrap_or_default();
    let users = options.userns_options.as_ref().is_some_and(|u| u.mode() != cri::NamespaceMode::Node);
    if users {
        return Err(PodError::unimplemented("a user namespace of the pod's own (hostUsers: false) is not there yet"));
    }
    match security.selinux_options.is_some_and(|o| o != cri::SeLinuxOption::default()) && !context.facts.selinux {
        true => Err(PodError::precondition("SELinux options are given, but this node has no SELinux")),
        false => Ok(()),
    }
}

/// Brings the pod up; the record is durable when this returns.
pub(crate) async fn run(
    context: Arc<Context>,
    id: PodId,
    config: cri::PodSandboxConfig,
    handler: String,
) -> Result<(PodRecord, Supervisor), PodError> {
    let made = bring_up(&context, &id, config, handler).await;
    if made.is_err() {
        let (disk, state) = (context.layout.pod(&id), context.layout.pod_state(&id));
        let removed = blocking(move || paths::remove_tree(&state).and_then(|()| paths::remove_tree(&disk))).await;
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
        blocking(move || make_directories(&context, &id, &config)).await?;
    }
    let supervisor = context.template.spawn(spec).await?;
    let record = PodRecord {
        version: record::VERSION,
        id: id.clone(),
        config,
        handler,
        created_at: now(),
        stopped: false,
        supervisor: process::describe(supervisor.pid(), &context.facts.boot_id),
        cgroup,
    };
    let (path, copy) = (context.layout.pod_record(id), record.clone());
    if let Err(error) = blocking(move || Ok(store::write(&path, &copy)?)).await {
        end_supervisor(context, &record, Some(&supervisor)).await;
        return Err(error);
    }
    Ok((record, supervisor))
}

fn make_directories(context: &Context, id: &PodId, config: &cri::PodSandboxConfig) -> Result<(), PodError> {
    let state = context.layout.pod_state(id);
    files::private_directory(&context.layout.pod(id).join("containers"))?;
    files::private_directory(&state.join("containers"))?;
    files::private_directory(&state.join("shm"))?;
    let node_network = pod_modes(config).network == wire::NamespaceMode::Node;
    files::write(&state, config, hostname(config, &context.facts), node_network)?;
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
        ..Default::default()
    }
}

/// Ends everything that runs in the pod. When the supervisor cannot be asked, what it left is killed by record.
pub(crate) async fn end_supervisor(context: &Context, pod: &PodRecord, supervisor: Option<&Supervisor>) {
    if let Some(supervisor) = supervisor {
        let shutdown = supervisor.call(Op::Shutdown(wire::Shutdown { grace_ms: 0 }));
        match tokio::time::timeout(SHUTDOWN_DEADLINE, shutdown).await {
            Ok(Ok(()) | Err(ExecutorError::Gone)) => return,
            Ok(Err(error)) => tracing::warn!(pod = %pod.id, %error, "the supervisor would not end: it is killed"),
            Err(_) => tracing::warn!(pod = %pod.id, "the supervisor does not end: it is killed"),
        }
    }
    process::kill(&pod.supervisor, &context.facts.boot_id);
}

/// Stops the pod for good.
pub(crate) async fn stop(
    context: Arc<Context>,
    pod: Arc<PodRecord>,
    containers: Vec<Arc<ContainerRecord>>,
    supervisor: Option<Supervisor>,
) -> Result<(), PodError> {
    end_supervisor(&context, &pod, supervisor.as_ref()).await;
    let path = context.layout.pod_record(&pod.id);
    blocking(move || {
        kill_rest(&containers, &context.facts.boot_id);
        Ok(store::write(&path, &PodRecord { stopped: true, ..(*pod).clone() })?)
    })
    .await
}

/// What a supervisor that died itself may have left running.
pub(crate) fn kill_rest(containers: &[Arc<ContainerRecord>], boot_id: &str) {
    for container in containers {
        process::kill(&container.process, boot_id);
        let _ = fs::write(cgroup_directory(&container.cgroup).join("cgroup.kill"), "1");
    }
}

fn cgroup_directory(cgroup: &Path) -> PathBuf {
    Path::new(CGROUP_MOUNT).join(cgroup.strip_prefix("/").unwrap_or(cgroup))
}

/// Stops the pod and removes every trace of it and of its containers.
pub(crate) async fn remove(
    context: Arc<Context>,
    pod: Arc<PodRecord>,
    containers: Vec<Arc<ContainerRecord>>,
    supervisor: Option<Supervisor>,
) -> Result<(), PodError> {
    end_supervisor(&context, &pod, supervisor.as_ref()).await;
    let ids: BTreeSet<ContainerId> = containers.iter().map(|c| c.id.clone()).collect();
    for id in &ids {
        context.images.remove_snapshot(id.as_str()).await?;
    }
    blocking(move || {
        kill_rest(&containers, &context.facts.boot_id);
        for container in &containers {
            let _ = fs::remove_dir(cgroup_directory(&container.cgroup));
        }
        if let Some(cgroup) = &pod.cgroup {
            // A kubelet removes the cgroups that it made; ours goes here. One in use says so and stays.
            let _ = fs::remove_dir(cgroup_directory(cgroup));
        }
        paths::remove_tree(&context.layout.pod_state(&pod.id))?;
        // The record goes last: until then a restarted daemon knows that there is something to remove.
        paths::remove_tree(&context.layout.pod(&pod.id))
    })
    .await
}
