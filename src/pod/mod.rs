//! The domain: pods and containers, their states, one driver task per pod.
//!
//! ```text
//! Pods ── table (ids, names) ──> slot ──requests──> driver: the pod's one task ──> work: sandbox, create, container
//!   '── lists, statuses <──────── view <──publishes──'   |                                     |
//!                                                        '<── events ── supervisor <───────────'
//! ```
//!
//! `queue.rs` decides what happens to a request and has the diagram of states; `record.rs` has the format on disk;
//! `spec.rs` alone writes OCI specifications, with `args`, `users`, `capabilities`, `mounts`, `devices`, `resources`
//! and `seccomp` for its parts; `recover.rs` puts it all together again after a restart.

mod args;
mod capabilities;
mod cdi;
mod cgroup;
mod container;
mod context;
mod create;
mod devices;
mod driver;
mod error;
mod events;
mod exec;
mod facts;
mod files;
mod host_ports;
mod limits;
mod member;
mod modules;
mod mounts;
mod name;
mod network;
mod paths;
mod queue;
mod reading;
mod record;
mod recover;
mod resolver;
mod resources;
mod runtimes;
mod sandbox;
mod seccomp;
pub mod session;
mod sessions;
mod signal;
mod spec;
mod stats;
mod sysctls;
mod table;
mod update;
mod user_namespace;
mod users;
mod view;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument;

use crate::config::Config;
use crate::executor::client::{Supervisor, Template};
use crate::image::Images;
use crate::pod::context::{Context, blocking, whom_pod};
use crate::pod::driver::{Answer, Detail, Driver, REQUEST_BACKLOG, Request, RunOutcome};
use crate::pod::exec::Place;
use crate::pod::name::{Answered, ContainerName, PodName};
use crate::pod::queue::Wish;
use crate::pod::table::{PodSlot, Table};
use crate::pod::view::PodView;
use crate::proto::cri;
use crate::proto::supervisor as wire;
use crate::proto::supervisor::request::Op;
use crate::rootless::Node;
use crate::store::PodId;
use crate::sys::crash::Point;

pub use error::{PodError, PodErrorKind};
pub use network::PodNetworks;

/// What an ExecSync brought back.
#[derive(Debug, Clone, Default)]
pub struct ExecOutput {
    /// At most what one 16 MiB answer holds together with `stderr`.
    pub stdout: Vec<u8>,
    /// See `stdout`.
    pub stderr: Vec<u8>,
    /// As a shell says it.
    pub exit_code: i32,
}

/// What the domain stands on.
pub struct PodsOptions {
    /// The configuration.
    pub config: Arc<Config>,
    /// The node.
    pub node: Arc<Node>,
    /// The image service.
    pub images: Images,
    /// Forks supervisors.
    pub template: Template,
    /// What pods are connected to.
    pub networks: PodNetworks,
}

/// All pods. Cheap to clone. Handlers call it and may be dropped at any point: the work goes on in the pod's own
/// task, and a repeated request joins it. Wherever an id is taken, a unique prefix of three characters or more is.
#[derive(Clone)]
pub struct Pods {
    context: Arc<Context>,
}

impl Pods {
    /// Rebuilds everything from records and live supervisors.
    pub async fn open(options: PodsOptions) -> Result<Self, PodError> {
        let handlers = options.config.runtimes.clone();
        let runtimes = blocking(move || runtimes::Runtimes::read(&handlers)).await?;
        let context = Arc::new(Context {
            node: options.node,
            images: options.images,
            template: options.template,
            networks: options.networks,
            layout: record::Layout::new(&options.config),
            facts: blocking(facts::Facts::read).await?,
            events: events::Events::default(),
            table: Table::default(),
            stats: stats::Stats::default(),
            runtimes,
            cdi_spec_dirs: options.config.cdi_spec_dirs.clone(),
        });
        recover::recover(&context).await?;
        resolver::follow(&context);
        Ok(Self { context })
    }

    /// See CRI's RPC of that name, as all below. Answers the pod's id.
    pub async fn run_pod_sandbox(&self, config: cri::PodSandboxConfig, handler: String) -> Result<String, PodError> {
        let name = PodName::of(&config)?;
        let whom = whom_pod(&config);
        sandbox::check(&self.context, &config, &handler).map_err(|e| e.of(&whom))?;
        let (slot, under_way) = self.find_or_begin(name, config, handler);
        if slot.answered.is_marked() && !under_way {
            let message = format!("{whom} is here already as {}: remove it first, or ask for another attempt", slot.id);
            return Err(PodError::new(PodErrorKind::AlreadyExists, message));
        }
        let mut outcome = slot.outcome.clone();
        let result = match outcome.wait_for(Option::is_some).await {
            Ok(result) => result.clone().expect("waited for"),
            Err(_) => Err(PodError::internal("the daemon is shutting down")),
        };
        result.map_err(|e| e.of(&whom))?;
        context::pass(Point::PodAnswered).await?;
        slot.answered.mark();
        Ok(slot.id.to_string())
    }

    /// The pod of this name, and whether its coming up is under way.
    fn find_or_begin(&self, name: PodName, config: cri::PodSandboxConfig, handler: String) -> (Arc<PodSlot>, bool) {
        let mut begun = None;
        let (slot, new) = self.context.table.find_or_insert(&name, || {
            let id = PodId::random();
            let (requests, inbox) = mpsc::channel(REQUEST_BACKLOG);
            let (sender, outcome) = watch::channel(None);
            let answered = Answered::not_yet(self.context.layout.pod(&id).join("answered"));
            begun = Some((inbox, sender));
            Arc::new(PodSlot::new(id, name.clone(), requests, outcome, answered))
        });
        if let Some((inbox, outcome)) = begun.filter(|_| new) {
            let work = sandbox::run(Arc::clone(&self.context), slot.id.clone(), config, handler).in_current_span();
            tokio::spawn(bring_up(Arc::clone(&self.context), Arc::clone(&slot), work, inbox, outcome));
        }
        let under_way = new || slot.outcome.borrow().is_none();
        (slot, under_way)
    }

    async fn ask(&self, slot: &PodSlot, wish: Wish, detail: Detail) -> Option<Result<Answer, PodError>> {
        let (reply, answer) = oneshot::channel();
        slot.requests.send(Request { wish, detail, reply, span: tracing::Span::current() }).await.ok()?;
        answer.await.ok()
    }

    /// For requests to which "it is gone" is success.
    async fn end(&self, slot: &PodSlot, wish: Wish, detail: Detail) -> Result<(), PodError> {
        match self.ask(slot, wish, detail).await {
            Some(answer) => answer.map(drop),
            None if self.context.table.has(slot) => Err(PodError::internal(
                "the pod's task has ended by a defect; restart the daemon, which recovers the pod",
            )),
            None => Ok(()),
        }
    }

    /// Idempotent; what is gone is stopped.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), PodError> {
        match gone_is_none(self.context.table.pod(id))? {
            Some((slot, _)) => self.end(&slot, Wish::StopPod, Detail::Nothing).await,
            None => Ok(()),
        }
    }

    /// Idempotent; what is gone is removed.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), PodError> {
        match gone_is_none(self.context.table.pod(id))? {
            Some((slot, _)) => self.end(&slot, Wish::RemovePod, Detail::Nothing).await,
            None => Ok(()),
        }
    }

    /// Answers the container's id.
    pub async fn create_container(
        &self,
        pod_id: &str,
        config: cri::ContainerConfig,
        _sandbox_config: Option<cri::PodSandboxConfig>,
    ) -> Result<String, PodError> {
        let name = ContainerName::of(&config)?;
        let (slot, _) = self.context.table.pod(pod_id)?;
        let answer = self.ask(&slot, Wish::Create(name), Detail::Create(Box::new(config))).await;
        match answer.ok_or_else(|| PodError::not_found("pod", pod_id))?? {
            Answer::Container(id, answered) => {
                context::pass(Point::ContainerAnswered).await?;
                answered.mark();
                Ok(id.to_string())
            }
            Answer::Done => Err(PodError::internal("a creation answered nothing")),
        }
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &str) -> Result<(), PodError> {
        let (slot, _, container) = self.context.table.container(id)?;
        let answer = self.ask(&slot, Wish::Start(container.record.id.clone()), Detail::Nothing).await;
        if let Answer::Container(_, answered) = answer.ok_or_else(|| PodError::not_found("container", id))?? {
            answered.mark();
        }
        Ok(())
    }

    /// The stop signal, then SIGKILL after `timeout`. Idempotent.
    pub async fn stop_container(&self, id: &str, timeout: Duration) -> Result<(), PodError> {
        match gone_is_none(self.context.table.container(id))? {
            Some((slot, _, container)) => {
                self.end(&slot, Wish::Stop(container.record.id.clone()), Detail::Stop(timeout)).await
            }
            None => Ok(()),
        }
    }

    /// Kills it if need be. Idempotent.
    pub async fn remove_container(&self, id: &str) -> Result<(), PodError> {
        match gone_is_none(self.context.table.container(id))? {
            Some((slot, _, container)) => {
                self.end(&slot, Wish::Remove(container.record.id.clone()), Detail::Nothing).await
            }
            None => Ok(()),
        }
    }

    /// Other limits; zeros leave things as they are. What cannot be enforced is in the status.
    pub async fn update_container_resources(
        &self,
        id: &str,
        resources: cri::LinuxContainerResources,
    ) -> Result<(), PodError> {
        let (slot, _, container) = self.context.table.container(id)?;
        let wish = Wish::Update(container.record.id.clone());
        let answer = self.ask(&slot, wish, Detail::Update(Box::new(resources))).await;
        answer.ok_or_else(|| PodError::not_found("container", id))?.map(drop)
    }

    /// Other limits of a pod as a whole.
    pub async fn update_pod_sandbox_resources(
        &self,
        id: &str,
        overhead: Option<cri::LinuxContainerResources>,
        resources: Option<cri::LinuxContainerResources>,
    ) -> Result<(), PodError> {
        let (slot, _) = self.context.table.pod(id)?;
        let detail = Detail::UpdatePod(Box::new((overhead, resources)));
        let answer = self.ask(&slot, Wish::UpdatePod, detail).await;
        answer.ok_or_else(|| PodError::not_found("pod", id))?.map(drop)
    }

    /// Runs a command to its end; past `timeout` (none: for ever) it is dead and the error is DeadlineExceeded.
    /// Dropped before, it is killed too.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, PodError> {
        exec::exec_sync(self.place(id)?, command, timeout).await
    }

    /// After the kubelet moved the file away: opens a new one.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), PodError> {
        let place = self.place(id)?;
        let container_id = place.container.record.id.to_string();
        place.supervisor.call(Op::ReopenLog(wire::ReopenLog { container_id })).await?;
        context::pass(Point::LogReopened).await
    }

    /// Checks that an exec or attach may begin (the container runs) before a URL is given out; answers the full id.
    pub fn check_session(&self, container_id: &str) -> Result<String, PodError> {
        Ok(self.place(container_id)?.container.record.id.to_string())
    }

    /// As [`Pods::check_session`], for an attach, which may begin before the container runs.
    pub fn check_attach(&self, container_id: &str) -> Result<String, PodError> {
        Ok(self.unended(container_id)?.container.record.id.to_string())
    }

    /// As [`Pods::check_session`], of a pod for port-forward.
    pub fn check_port_forward(&self, pod_id: &str) -> Result<String, PodError> {
        let view = self.pod(pod_id)?.1;
        match view.ready {
            true => Ok(view.record.id.to_string()),
            false => Err(PodError::precondition(format!("the pod {} is not ready", view.record.id.short()))),
        }
    }

    /// From now on new pods get addresses of these ranges, one or two separated by a comma; pods that run keep theirs.
    pub async fn change_pod_ranges(&self, cidrs: &str) -> Result<(), PodError> {
        self.context.networks.change_ranges(cidrs).await
    }

    fn place(&self, id: &str) -> Result<Place, PodError> {
        let (slot, view, container) = self.context.table.container(id)?;
        Place::of(slot, &view, container)
    }

    fn unended(&self, id: &str) -> Result<Place, PodError> {
        let (slot, view, container) = self.context.table.container(id)?;
        Place::of_unended(slot, &view, container)
    }

    fn pod(&self, id: &str) -> Result<(Arc<PodSlot>, Arc<PodView>), PodError> {
        self.context.table.pod(id)
    }
}

fn gone_is_none<T>(found: Result<T, PodError>) -> Result<Option<T>, PodError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == PodErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The pod's task, from RunPodSandbox to RemovePodSandbox.
async fn bring_up(
    context: Arc<Context>,
    slot: Arc<PodSlot>,
    work: impl Future<Output = Result<(record::PodRecord, Supervisor), PodError>> + Send + 'static,
    inbox: mpsc::Receiver<Request>,
    outcome: RunOutcome,
) {
    // In a task of its own, so that a defect frees the name as an error does.
    let result = match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(PodError::internal(format!("the work ended by a defect of the daemon: {error}"))),
    };
    match result {
        Ok((record, supervisor)) => {
            let driver = Driver::new(context, slot, record, Some(supervisor), Default::default());
            outcome.send_replace(Some(Ok(())));
            driver.run(inbox).await;
        }
        Err(error) => {
            context.table.remove(&slot);
            outcome.send_replace(Some(Err(error)));
        }
    }
}
