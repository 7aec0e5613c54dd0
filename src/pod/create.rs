//! The making of a container: image, snapshot, user, specification, bundle, supervisor, record. What fails is undone.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::executor::client::Supervisor;
use crate::image::{Image, Writes};
use crate::pod::container::KILL_DEADLINE;
use crate::pod::context::{Context, blocking, caught, container_modes, hostname, pass, text};
use crate::pod::error::{PodError, quoted};
use crate::pod::record::{self, ContainerRecord, PodRecord};
use crate::pod::spec::{Container, Modes};
use crate::pod::users::{self, ContainerUser, Databases};
use crate::pod::volumes::{self, Volumes};
use crate::pod::{args, cdi, cgroup, files, paths, resources, signal, user_namespace};
use crate::proto::supervisor::request::Op;
use crate::proto::{cri, supervisor as wire};
use crate::store::{self, ContainerId};
use crate::sys::crash::Point;

/// For the supervisor's watchdog around libcontainer, which needs some ten milliseconds.
const CREATE_DEADLINE: Duration = Duration::from_secs(60);

/// Everything that the work needs.
pub(crate) struct Creation {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: Arc<PodRecord>,
    pub(crate) supervisor: Supervisor,
    pub(crate) id: ContainerId,
    pub(crate) config: cri::ContainerConfig,
    /// Whose PID namespace is joined.
    pub(crate) pid_target: Option<PidTarget>,
    /// True once its process has ended.
    pub(crate) ended: watch::Receiver<bool>,
}

/// A running container whose processes another one is to see.
pub(crate) struct PidTarget {
    id: ContainerId,
    /// It has no PID namespace of its own: the node's cannot be joined, only kept.
    is_nodes: bool,
}

impl PidTarget {
    pub(crate) fn new(id: &ContainerId, pid: i32) -> Self {
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/pid")).ok();
        let own = namespace("self");
        Self { id: id.clone(), is_nodes: own.is_some() && namespace(&pid.to_string()) == own }
    }
}

/// What is known once the bundle is written.
struct Bundle {
    rootfs: OwnedFd,
    user: ContainerUser,
    log_path: String,
    cgroup: PathBuf,
    propagations: Vec<wire::Propagation>,
    volumes: Vec<OwnedFd>,
    not_enforced: Vec<String>,
}

/// Makes the container; the record is durable when this returns.
pub(crate) async fn create(work: Creation) -> Result<ContainerRecord, PodError> {
    let work = Arc::new(work);
    let name = work.config.image.as_ref().map_or("", |i| i.image.as_str());
    if name.is_empty() {
        return Err(PodError::invalid("the image is not named"));
    }
    let image = work.context.images.find(name).ok_or_else(|| {
        let message = format!("there is no image {:?} here: pull it first", quoted(name));
        PodError::new(crate::pod::PodErrorKind::NotFound, message)
    })?;
    let made = caught(make(&work, image)).await;
    if made.is_err() {
        undo(&work).await;
    }
    made
}

async fn make(work: &Arc<Creation>, image: Arc<Image>) -> Result<ContainerRecord, PodError> {
    // Writable also under a read-only root: mount points are made in it first, then the runtime closes it.
    let owners = user_namespace::owners(&work.pod.config, &work.supervisor).await?;
    let (images, id) = (&work.context.images, work.id.as_str());
    let snapshot = images.snapshot_for(id, &image, Writes::Kept, owners.clone()).await?;
    pass(Point::ContainerSnapshot).await?;
    let image_volumes = volumes::mount_images(images, &work.id, &work.config, owners).await?;
    let mut modes = container_modes(&work.pod.config, &work.config);
    if work.pid_target.as_ref().is_some_and(|target| target.is_nodes) {
        modes.pid = wire::NamespaceMode::Node;
    }
    let bundle = {
        let (work, image) = (Arc::clone(work), Arc::clone(&image));
        blocking(move || write_bundle(&work, &image, modes, snapshot.mount, image_volumes)).await?
    };
    pass(Point::ContainerBundle).await?;
    let request = create_request(work, modes, &bundle);
    let reply = work.supervisor.create_container(request, bundle.rootfs, bundle.volumes).await?;
    pass(Point::ContainerMade).await?;
    let mut not_enforced = bundle.not_enforced;
    not_enforced.extend(reply.not_enforced);
    for limit in &not_enforced {
        // What a machine enforces of nobody's was said once, when the daemon started.
        match work.context.node.cgroups.root {
            Some(_) => tracing::warn!(container = %work.id, "{limit}"),
            None => tracing::debug!(container = %work.id, "{limit}"),
        }
    }
    let record = ContainerRecord {
        version: record::VERSION,
        id: work.id.clone(),
        pod: work.pod.id.clone(),
        config: work.config.clone(),
        created_at: reply.created_at,
        image_id: image.id.clone(),
        image_name: image_name(&image),
        log_path: bundle.log_path,
        uid: bundle.user.uid,
        gid: bundle.user.gid,
        groups: bundle.user.groups,
        stop_signal: stop_signal(&work.config, &image),
        pid: reply.pid,
        cgroup: bundle.cgroup,
        not_enforced,
        pending: None,
    };
    let (path, copy) = (work.context.layout.container_record(&work.pod.id, &work.id), record.clone());
    blocking(move || Ok(store::write(&path, &copy)?)).await?;
    pass(Point::ContainerRecorded).await?;
    Ok(record)
}

fn security(config: &cri::ContainerConfig) -> cri::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default()
}

fn image_name(image: &Image) -> String {
    image.repo_tags.first().or(image.repo_digests.first()).unwrap_or(&image.id).clone()
}

fn stop_signal(config: &cri::ContainerConfig, image: &Image) -> i32 {
    signal::number(config.stop_signal()).or(image.config.stop_signal).unwrap_or(signal::DEFAULT_STOP)
}

fn write_bundle(
    work: &Creation,
    image: &Image,
    modes: Modes,
    rootfs: OwnedFd,
    image_volumes: Vec<(usize, OwnedFd)>,
) -> Result<Bundle, PodError> {
    let (context, pod) = (&work.context, &work.pod);
    let security = security(&work.config);
    let mut user = users::resolve(&security, &image.config.user, &Databases::read(rootfs.as_fd())?)?;
    let mut groups_lost = None;
    if !context.facts.sets_groups {
        (user, groups_lost) = user.without_groups(&security)?;
    }
    let ids = user_namespace::ids(&pod.config);
    user_namespace::check_user(&user, ids)?;
    // Where there are no cgroups for us the specification must name one all the same; nobody makes it.
    let parent = pod.cgroup.clone().unwrap_or_else(|| Path::new("/").join(cgroup::OWN_PARENT));
    let cgroup = resources::container_cgroup(&parent, work.id.as_str());
    let directory = context.layout.bundle(&pod.id, &work.id);
    let volumes = Volumes::gather(&directory, &work.config, image_volumes, (&image.config, &rootfs), ids)?;
    // The record keeps what was asked for; this is what handler and devices make of it.
    let (config, injection) =
        cdi::resolve(&context.cdi_spec_dirs, context.runtimes.request(&pod.handler, &work.config))?;
    let container = Container {
        config: &config,
        image: &image.config,
        user: &user,
        modes,
        ids,
        hostname: hostname(&pod.config, &context.facts),
        state_dir: &context.layout.pod_state(&pod.id),
        bundle: &directory,
        volumes: &volumes,
        cgroup: cgroup.clone(),
        cgroups: &context.node.cgroups,
        facts: &context.facts,
    };
    let mut specification = container.specification()?;
    context.runtimes.amend(&pod.handler, &mut specification.spec);
    injection.amend(&mut specification.spec)?;
    // The runtime would fail where it is missing; the field makes it.
    paths::make_in_root(&rootfs, &args::working_directory(&work.config, &image.config)?, ids)?;
    let log_path = log_path(&pod.config, &work.config)?;
    files::private_directory(&directory.join("rootfs"))?;
    files::private_directory(&context.layout.container(&pod.id, &work.id))?;
    let path = directory.join("config.json");
    let bytes = serde_json::to_vec(&specification.spec)
        .map_err(|e| PodError::internal(format!("the specification cannot be written: {e}")))?;
    std::fs::write(&path, bytes).map_err(|e| PodError::io(format_args!("write {}", path.display()), &e))?;
    let (propagations, mut not_enforced) = (specification.propagations, specification.not_enforced);
    not_enforced.extend(groups_lost);
    Ok(Bundle { rootfs, user, log_path, cgroup, propagations, volumes: volumes.mounts, not_enforced })
}

/// The log stays below the pod's log directory.
fn log_path(pod: &cri::PodSandboxConfig, config: &cri::ContainerConfig) -> Result<String, PodError> {
    if pod.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(String::new());
    }
    let directory = paths::on_node("the log directory", &pod.log_directory)?;
    let path = paths::below("the log path", &config.log_path)?;
    paths::prepare_below(&directory, &path)?;
    Ok(text(&directory.join(path)))
}

fn create_request(work: &Creation, modes: Modes, bundle: &Bundle) -> wire::CreateContainer {
    let resources = work.config.linux.as_ref().and_then(|l| l.resources.as_ref());
    let cgroup = work.pod.cgroup.as_ref().map(|_| text(&bundle.cgroup));
    wire::CreateContainer {
        container_id: work.id.to_string(),
        log_path: bundle.log_path.clone(),
        log_directory: if bundle.log_path.is_empty() { String::new() } else { work.pod.config.log_directory.clone() },
        tty: work.config.tty,
        stdin: work.config.stdin,
        stdin_once: work.config.stdin_once,
        cgroup: cgroup.unwrap_or_default(),
        oom_score_adj: resources.map_or(0, |r| i32::try_from(r.oom_score_adj).unwrap_or_default()),
        timeout_ms: CREATE_DEADLINE.as_millis() as u64,
        propagations: bundle.propagations.clone(),
        volumes: bundle.volumes.len() as u32,
        pid: modes.pid.into(),
        pid_target: work.pid_target.as_ref().map(|target| target.id.to_string()).unwrap_or_default(),
        seccomp_store: text(work.context.layout.seccomp_store()),
    }
}

/// Each step is tried whatever became of the one before; that there is nothing to undo is fine.
async fn undo(work: &Arc<Creation>) {
    let container_id = work.id.to_string();
    let signal = wire::SignalContainer { container_id: container_id.clone(), signal: libc::SIGKILL, all: true };
    if work.supervisor.call(Op::SignalContainer(signal)).await.is_ok() {
        // What does not end in time goes with the pod.
        let _ = tokio::time::timeout(KILL_DEADLINE, work.ended.clone().wait_for(|ended| *ended)).await;
        let _ = work.supervisor.call(Op::RemoveContainer(wire::RemoveContainer { container_id })).await;
    }
    for snapshot in volumes::snapshots(&work.id, &work.config) {
        if let Err(error) = work.context.images.remove_snapshot(&snapshot).await {
            tracing::warn!(container = %work.id, %error, "the snapshot {snapshot} of a container that failed stays");
        }
    }
    let (bundle, disk) =
        (work.context.layout.bundle(&work.pod.id, &work.id), work.context.layout.container(&work.pod.id, &work.id));
    if let Err(error) = blocking(move || paths::remove_tree(&bundle).and_then(|()| paths::remove_tree(&disk))).await {
        tracing::warn!(container = %work.id, %error, "a container that failed was not wholly removed");
    }
}
