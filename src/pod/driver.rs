//! The one task that owns a pod: it takes requests, begins pieces of work, hears the supervisor, publishes how the pod
//! looks. Nobody else changes a pod's state; what to do with a request is decided in `queue.rs`, where the diagram is.
//!
//! Work runs beside the task, never in it, so that events are heard at any time. A caller that goes away loses its
//! answer only. Whatever ends (work, process, supervisor) is followed by another look at the requests that wait.
//!
//! Longer than most files: what one task does to one state is read in one place.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, Span};

use crate::executor::client::Supervisor;
use crate::pod::container;
use crate::pod::context::{Context, whom_container, whom_pod};
use crate::pod::create::{self, Creation, PidTarget};
use crate::pod::error::PodError;
use crate::pod::member::Member;
use crate::pod::name::{Answered, Answers, ContainerName};
use crate::pod::queue::{self, Job, Phase, PodJob, PodStanding, Verdict, Wish};
use crate::pod::record::{ContainerRecord, PodRecord};
use crate::pod::table::PodSlot;
use crate::pod::view::{Listed, PodView};
use crate::pod::{sandbox, update};
use crate::proto::cri::{self, ContainerEventType};
use crate::proto::supervisor as wire;
use crate::store::ContainerId;

/// Requests that wait for the task.
pub(crate) const REQUEST_BACKLOG: usize = 256;
/// Requests that wait for other work.
const WAITING_LIMIT: usize = 1024;
/// How long the last events of a supervisor that has ended may take to arrive.
const LAST_EVENTS_DEADLINE: Duration = Duration::from_secs(2);

/// What is asked of the task.
pub(crate) struct Request {
    pub(crate) wish: Wish,
    pub(crate) detail: Detail,
    pub(crate) reply: Reply,
    /// Of the call, for what its work logs.
    pub(crate) span: Span,
}

/// What the work needs beside the wish.
pub(crate) enum Detail {
    Nothing,
    Create(Box<cri::ContainerConfig>),
    Stop(Duration),
    Update(Box<cri::LinuxContainerResources>),
    /// Overhead and resources.
    UpdatePod(Box<(Option<cri::LinuxContainerResources>, Option<cri::LinuxContainerResources>)>),
}

/// What comes back.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Done,
    Container(ContainerId, Answered),
}

pub(crate) type Reply = oneshot::Sender<Result<Answer, PodError>>;

/// Work that has ended.
enum Outcome {
    Created(ContainerId, Box<Result<ContainerRecord, PodError>>),
    /// Since when it runs.
    Started(ContainerId, Result<i64, PodError>),
    Container(ContainerId, Job, Result<(), PodError>),
    Updated(ContainerId, Box<Result<ContainerRecord, PodError>>),
    PodUpdated(Box<Result<PodRecord, PodError>>),
    Pod(PodJob, Result<(), PodError>),
}

/// What work is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Container(ContainerId, Job),
    Pod(PodJob),
}

/// The state of one pod.
pub(crate) struct Driver {
    context: Arc<Context>,
    slot: Arc<PodSlot>,
    record: Arc<PodRecord>,
    ready: bool,
    supervisor: Option<Supervisor>,
    events: Option<mpsc::Receiver<wire::Event>>,
    members: BTreeMap<ContainerId, Member>,
    pod_job: Option<PodJob>,
    jobs: JoinSet<Outcome>,
    subjects: HashMap<Id, Subject>,
    joined: Vec<(Subject, Reply)>,
    waiting: VecDeque<Request>,
    removed: bool,
}

impl Driver {
    /// Of a pod that is up, or that was found on disk (then maybe without a supervisor).
    pub(crate) fn new(
        context: Arc<Context>,
        slot: Arc<PodSlot>,
        record: PodRecord,
        supervisor: Option<Supervisor>,
        members: BTreeMap<ContainerId, Member>,
    ) -> Self {
        let driver = Self {
            ready: supervisor.is_some(),
            events: supervisor.as_ref().and_then(Supervisor::take_events),
            context,
            slot,
            record: Arc::new(record),
            supervisor,
            members,
            pod_job: None,
            jobs: JoinSet::new(),
            subjects: HashMap::new(),
            joined: Vec::new(),
            waiting: VecDeque::new(),
            removed: false,
        };
        for id in driver.members.keys() {
            driver.context.table.insert_container(id.clone(), driver.record.id.clone());
        }
        driver.publish();
        driver
    }

    /// Until the pod is removed.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while !self.removed {
            tokio::select! {
                biased;
                event = next_event(&mut self.events) => match event {
                    Some(event) => self.on_event(event),
                    None => self.on_supervisor_gone().await,
                },
                Some(done) = self.jobs.join_next_with_id(), if !self.jobs.is_empty() => self.on_done(done).await,
                request = requests.recv() => match request {
                    Some(request) => self.consider(request),
                    None => return,
                },
            }
            for request in std::mem::take(&mut self.waiting) {
                self.consider(request);
            }
        }
        requests.close();
        while let Some(request) = requests.recv().await {
            self.waiting.push_back(request);
        }
        for request in std::mem::take(&mut self.waiting) {
            let _ = request.reply.send(answer_of_removed(&request.wish));
        }
    }

    fn consider(&mut self, request: Request) {
        if request.reply.is_closed() && self.waiting.len() >= WAITING_LIMIT {
            return;
        }
        match queue::decide(&self.standing(), &request.wish) {
            Verdict::Begin => self.begin(request),
            Verdict::Join(id) => self.join(id, request),
            Verdict::JoinPod => {
                let job = self.pod_job.expect("joined to the pod's work");
                self.joined.push((Subject::Pod(job), request.reply));
            }
            Verdict::Hurry => {
                self.members.values().for_each(Member::hurry);
                self.wait(request);
            }
            Verdict::Wait => self.wait(request),
            Verdict::Done => drop(request.reply.send(Ok(Answer::Done))),
            Verdict::Found(id) => {
                let answers = &self.members[&id].answers;
                let answered = if let Wish::Start(_) = request.wish { &answers.started } else { &answers.created };
                let _ = request.reply.send(Ok(Answer::Container(id, answered.clone())));
            }
            Verdict::Refuse(refusal) => {
                let error = refused(&refusal, &whom_pod(&self.record.config));
                let _ = request.reply.send(Err(error));
            }
        }
    }

    fn standing(&self) -> PodStanding {
        PodStanding {
            ready: self.ready,
            job: self.pod_job,
            closing: self.waiting.iter().any(|r| matches!(r.wish, Wish::StopPod | Wish::RemovePod)),
            containers: self.members.iter().map(|(id, member)| (id.clone(), member.standing())).collect(),
        }
    }

    fn wait(&mut self, request: Request) {
        match self.waiting.len() < WAITING_LIMIT {
            true => self.waiting.push_back(request),
            false => drop(request.reply.send(Err(PodError::new(
                crate::pod::PodErrorKind::ResourceExhausted,
                format!("{WAITING_LIMIT} requests wait for this pod already"),
            )))),
        }
    }

    fn join(&mut self, id: ContainerId, request: Request) {
        let Some(member) = self.members.get(&id) else { return };
        if let Detail::Stop(grace) = request.detail {
            member.stop_by(Instant::now() + grace);
        }
        let job = member.job.expect("joined to a container's work");
        self.joined.push((Subject::Container(id, job), request.reply));
    }

    fn begin(&mut self, request: Request) {
        let _call = request.span.entered();
        match (request.wish, request.detail) {
            (Wish::Create(name), Detail::Create(config)) => self.begin_create(name, *config, request.reply),
            (Wish::Start(id), _) => {
                let work = |driver: &Self, m: &Member| Some(container::start(driver.supervisor.clone()?, m.record()?));
                self.begin_with(id, Job::Start, request.reply, work, Outcome::Started);
            }
            (Wish::Stop(id), detail) => {
                let grace = if let Detail::Stop(grace) = detail { grace } else { Duration::ZERO };
                let deadline = self.members.get_mut(&id).map(|m| m.begin_stop(Instant::now() + grace));
                let work = |driver: &Self, m: &Member| {
                    Some(container::stop(driver.supervisor.clone()?, m.record()?, deadline?, m.ended()))
                };
                self.begin_with(id, Job::Stop, request.reply, work, |id, result| {
                    Outcome::Container(id, Job::Stop, result)
                });
            }
            (Wish::Remove(id), _) => {
                let work = |driver: &Self, m: &Member| {
                    let context = Arc::clone(&driver.context);
                    Some(container::remove(context, driver.supervisor.clone(), m.record()?, m.ended()))
                };
                self.begin_with(id, Job::Remove, request.reply, work, |id, result| {
                    Outcome::Container(id, Job::Remove, result)
                });
            }
            (Wish::StopPod, _) => self.begin_pod(PodJob::Stop, request.reply),
            (Wish::RemovePod, _) => self.begin_pod(PodJob::Remove, request.reply),
            (Wish::Update(id), Detail::Update(change)) => self.begin_update(id, *change, request.reply),
            (Wish::UpdatePod, Detail::UpdatePod(change)) => self.begin_pod_update(*change, request.reply),
            (Wish::Create(_) | Wish::Update(_) | Wish::UpdatePod, _) => {
                unreachable!("a creation or a change comes with its configuration")
            }
        }
    }

    fn begin_with<T, F>(
        &mut self,
        id: ContainerId,
        job: Job,
        reply: Reply,
        work: impl FnOnce(&Self, &Member) -> Option<F>,
        outcome: fn(ContainerId, Result<T, PodError>) -> Outcome,
    ) where
        T: Send + 'static,
        F: Future<Output = Result<T, PodError>> + Send + 'static,
    {
        let work = self.members.get(&id).and_then(|member| work(self, member));
        let Some(work) = work else {
            let _ = reply.send(Err(PodError::precondition(format!("{} is not ready", whom_pod(&self.record.config)))));
            return;
        };
        if let Some(member) = self.members.get_mut(&id) {
            member.job = Some(job);
        }
        let subject = Subject::Container(id.clone(), job);
        self.spawn(subject, reply, async move { outcome(id, work.await) });
    }

    fn begin_update(&mut self, id: ContainerId, change: cri::LinuxContainerResources, reply: Reply) {
        let Some((member, record)) = self.members.get_mut(&id).and_then(|m| m.record().map(|r| (m, r))) else { return };
        member.job = Some(Job::Update);
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.record));
        let subject = Subject::Container(id.clone(), Job::Update);
        let work = async move { Outcome::Updated(id, Box::new(update::container(context, pod, record, change).await)) };
        self.spawn(subject, reply, work);
    }

    fn begin_pod_update(
        &mut self,
        (overhead, resources): (Option<cri::LinuxContainerResources>, Option<cri::LinuxContainerResources>),
        reply: Reply,
    ) {
        self.pod_job = Some(PodJob::Update);
        let work = update::pod(Arc::clone(&self.context), Arc::clone(&self.record), overhead, resources);
        self.spawn(Subject::Pod(PodJob::Update), reply, async move { Outcome::PodUpdated(Box::new(work.await)) });
    }

    fn begin_create(&mut self, name: ContainerName, config: cri::ContainerConfig, reply: Reply) {
        let whom = whom_container(&self.record.config, &config);
        let pid_target = match self.pid_target(&config) {
            Ok(target) => target,
            Err(error) => return drop(reply.send(Err(error.of(&whom)))),
        };
        let Some(supervisor) = self.supervisor.clone() else { return };
        let id = ContainerId::random();
        let answers = Answers::not_yet(&self.context.layout.container(&self.record.id, &id));
        let member = Member::creating(name, whom, answers);
        let creation = Creation {
            context: Arc::clone(&self.context),
            pod: Arc::clone(&self.record),
            supervisor,
            id: id.clone(),
            config,
            pid_target,
            ended: member.ended(),
        };
        self.members.insert(id.clone(), member);
        let subject = Subject::Container(id.clone(), Job::Create);
        self.spawn(subject, reply, async move { Outcome::Created(id, Box::new(create::create(creation).await)) });
    }

    fn pid_target(&self, config: &cri::ContainerConfig) -> Result<Option<PidTarget>, PodError> {
        let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = security.and_then(|s| s.namespace_options.as_ref());
        let Some(options) = options.filter(|o| o.pid == cri::NamespaceMode::Target as i32) else { return Ok(None) };
        let target = options.target_id.as_str();
        let found = self.members.iter().find(|(id, m)| id.as_str() == target && m.phase == Phase::Running);
        found.map(|(id, member)| Some(PidTarget::new(id, member.record().map_or(0, |r| r.pid)))).ok_or_else(|| {
            let target = crate::pod::error::quoted(target);
            PodError::precondition(format!(
                "the container {target:?}, whose processes are to be shared, does not run here"
            ))
        })
    }

    fn begin_pod(&mut self, job: PodJob, reply: Reply) {
        let (context, record, supervisor) =
            (Arc::clone(&self.context), Arc::clone(&self.record), self.supervisor.clone());
        let containers: Vec<_> = self.members.values().filter_map(Member::record).collect();
        self.pod_job = Some(job);
        let subject = Subject::Pod(job);
        match job {
            PodJob::Stop => {
                let work = sandbox::stop(context, record, containers, supervisor);
                self.spawn(subject, reply, async move { Outcome::Pod(job, work.await) });
            }
            PodJob::Remove => {
                let work = sandbox::remove(context, record, containers, supervisor);
                self.spawn(subject, reply, async move { Outcome::Pod(job, work.await) });
            }
            PodJob::Update => unreachable!("a change is begun with its resources"),
        }
    }

    fn spawn(&mut self, subject: Subject, reply: Reply, work: impl Future<Output = Outcome> + Send + 'static) {
        self.joined.push((subject.clone(), reply));
        let handle = self.jobs.spawn(work.in_current_span());
        self.subjects.insert(handle.id(), subject);
    }

    async fn on_done(&mut self, done: Result<(Id, Outcome), tokio::task::JoinError>) {
        let id = done.as_ref().map_or_else(tokio::task::JoinError::id, |(id, _)| *id);
        let subject = self.subjects.remove(&id).expect("every piece of work has a subject");
        let result = match done {
            Ok((_, outcome)) => self.conclude(outcome).await,
            Err(error) => {
                tracing::error!(pod = %self.record.id, ?subject, %error, "work on a pod ended by a defect");
                self.clear(&subject);
                Err(PodError::internal("the work ended by a defect of the daemon: see its log"))
            }
        };
        self.publish();
        let (mine, rest) = std::mem::take(&mut self.joined).into_iter().partition(|(s, _)| *s == subject);
        self.joined = rest;
        for (_, reply) in mine {
            let _ = reply.send(result.clone());
        }
    }

    fn clear(&mut self, subject: &Subject) {
        match subject {
            Subject::Pod(_) => self.pod_job = None,
            Subject::Container(id, Job::Create) => drop(self.members.remove(id)),
            Subject::Container(id, _) => {
                if let Some(member) = self.members.get_mut(id) {
                    member.job = None;
                }
            }
        }
    }

    async fn conclude(&mut self, outcome: Outcome) -> Result<Answer, PodError> {
        match outcome {
            Outcome::Created(id, result) => self.on_created(id, *result),
            Outcome::Started(id, result) => self.on_started(&id, result),
            Outcome::Container(id, job, result) => self.on_container(&id, job, result),
            Outcome::Updated(id, result) => {
                let member = self.members.get_mut(&id).expect("work on a container keeps it");
                member.job = None;
                member.updated((*result).map_err(|e| e.of(&member.whom))?);
                Ok(Answer::Done)
            }
            Outcome::PodUpdated(result) => {
                self.pod_job = None;
                self.record = Arc::new((*result).map_err(|e| e.of(&whom_pod(&self.record.config)))?);
                Ok(Answer::Done)
            }
            Outcome::Pod(job, result) => {
                self.pod_job = None;
                let result = result.map_err(|e| e.of(&whom_pod(&self.record.config)));
                if result.is_ok() {
                    self.on_supervisor_gone().await;
                    self.removed = job == PodJob::Remove;
                    if self.removed {
                        self.say_deleted();
                        // Before anybody is answered: nothing of it is to be seen from then on.
                        self.context.table.remove(&self.slot);
                        self.context.stats.forget(self.record.id.as_str());
                        self.members.keys().for_each(|id| self.context.stats.forget(id.as_str()));
                    }
                }
                result.map(|()| Answer::Done)
            }
        }
    }

    fn on_created(&mut self, id: ContainerId, result: Result<ContainerRecord, PodError>) -> Result<Answer, PodError> {
        let member = self.members.get_mut(&id).expect("work on a container keeps it");
        match result {
            Ok(record) => {
                member.created(record);
                let answered = member.answers.created.clone();
                self.context.table.insert_container(id.clone(), self.record.id.clone());
                self.publish();
                self.say(&id, ContainerEventType::ContainerCreatedEvent);
                Ok(Answer::Container(id, answered))
            }
            Err(error) => {
                let whom = member.whom.clone();
                self.members.remove(&id);
                Err(error.of(&whom))
            }
        }
    }

    fn on_started(&mut self, id: &ContainerId, result: Result<i64, PodError>) -> Result<Answer, PodError> {
        let member = self.members.get_mut(id).expect("work on a container keeps it");
        member.job = None;
        member.started(result.map_err(|e| e.of(&member.whom))?);
        let answered = member.answers.started.clone();
        self.publish();
        self.say(id, ContainerEventType::ContainerStartedEvent);
        Ok(Answer::Container(id.clone(), answered))
    }

    fn on_container(&mut self, id: &ContainerId, job: Job, result: Result<(), PodError>) -> Result<Answer, PodError> {
        let member = self.members.get_mut(id).expect("work on a container keeps it");
        member.job = None;
        result.map_err(|e| e.of(&member.whom))?;
        match job {
            Job::Remove => {
                self.members.remove(id);
                self.context.table.remove_container(id);
                self.context.stats.forget(id.as_str());
                self.publish();
                self.say(id, ContainerEventType::ContainerDeletedEvent);
            }
            Job::Create | Job::Start | Job::Stop | Job::Update => {}
        }
        Ok(Answer::Done)
    }

    fn on_event(&mut self, event: wire::Event) {
        match event.event {
            Some(wire::event::Event::ContainerExited(exit)) => self.on_exit(exit),
            Some(wire::event::Event::ExecExited(exit)) => self.slot.execs.ended(exit),
            Some(wire::event::Event::LogTrouble(trouble)) => {
                let id = trouble.container_id.parse::<ContainerId>().ok();
                if let Some(member) = id.and_then(|id| self.members.get_mut(&id)) {
                    if !trouble.message.is_empty() {
                        tracing::warn!("{}: its log cannot be written: {}", member.whom, trouble.message);
                    }
                    member.log_trouble = trouble.message;
                    self.publish();
                }
            }
            None => {}
        }
    }

    fn on_exit(&mut self, exit: wire::ContainerExit) {
        let Ok(id) = exit.container_id.parse::<ContainerId>() else { return };
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.exited(exit) {
            self.publish();
            self.say(&id, ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// Stopped by us or dead by itself: the pod is not ready, and each container has an exit.
    async fn on_supervisor_gone(&mut self) {
        let drained = timeout(LAST_EVENTS_DEADLINE, async {
            while let Some(events) = &mut self.events {
                match events.recv().await {
                    Some(event) => self.on_event(event),
                    None => self.events = None,
                }
            }
        });
        let _ = drained.await;
        self.events = None;
        self.slot.execs.abandon();
        let by_itself = self.ready && self.pod_job.is_none() && self.supervisor.is_some();
        (self.ready, self.supervisor) = (false, None);
        for exit in self.missing_exits() {
            self.on_exit(exit);
        }
        if by_itself && !self.record.stopped {
            tracing::error!("{}: its supervisor is gone, and all containers with it", whom_pod(&self.record.config));
            let (context, record) = (Arc::clone(&self.context), Arc::clone(&self.record));
            let containers = self.members.values().filter_map(Member::record).collect();
            // Its end is written down and what it may have left is killed, also if nobody ever asks for that.
            if let Err(error) = sandbox::stop(context, record, containers, None).await {
                tracing::warn!(pod = %self.record.id, %error, "the end of a pod was not recorded");
            }
        }
        self.publish();
    }

    fn missing_exits(&self) -> Vec<wire::ContainerExit> {
        let open = self.members.values().filter(|m| m.phase != Phase::Exited);
        open.filter_map(Member::record).map(|r| crate::pod::member::exit_on_disk(&self.context.layout, &r)).collect()
    }

    fn view(&self) -> Arc<PodView> {
        let containers = self.members.iter().filter_map(|(id, m)| Some((id.clone(), Arc::new(m.view()?))));
        Arc::new(PodView {
            record: Arc::clone(&self.record),
            ready: self.ready,
            supervisor: self.supervisor.clone(),
            containers: containers.collect(),
            listed: Listed::default(),
        })
    }

    fn publish(&self) {
        self.slot.publish(self.view());
    }

    fn say(&self, id: &ContainerId, kind: ContainerEventType) {
        if let Some(view) = self.slot.view() {
            self.context.events.send(id.as_str(), kind, &view);
        }
    }

    fn say_deleted(&self) {
        for id in self.members.keys() {
            self.say(id, ContainerEventType::ContainerDeletedEvent);
        }
    }
}

async fn next_event(events: &mut Option<mpsc::Receiver<wire::Event>>) -> Option<wire::Event> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

fn answer_of_removed(wish: &Wish) -> Result<Answer, PodError> {
    match wish {
        Wish::Create(_) | Wish::Start(_) | Wish::Update(_) | Wish::UpdatePod => {
            Err(PodError::new(crate::pod::PodErrorKind::NotFound, "the pod was removed meanwhile"))
        }
        Wish::Stop(_) | Wish::Remove(_) | Wish::StopPod | Wish::RemovePod => Ok(Answer::Done),
    }
}

fn refused(refusal: &queue::Refusal, pod: &str) -> PodError {
    use crate::pod::PodErrorKind::{AlreadyExists, NotFound};
    match refusal {
        queue::Refusal::NoSuchContainer => PodError::new(NotFound, format!("{pod} has no such container")),
        queue::Refusal::NameTaken(id) => {
            let message = format!("{pod} has a container of this name and attempt already: {id}; remove it first");
            PodError::new(AlreadyExists, message)
        }
        queue::Refusal::NotCreated(phase) => {
            let state = if *phase == Phase::Running { "runs already" } else { "has exited" };
            PodError::precondition(format!("the container of {pod} {state}: only a created one can be started"))
        }
        queue::Refusal::Exited => {
            PodError::precondition(format!("the container of {pod} has exited: it has no limits any more"))
        }
        queue::Refusal::PodNotReady => PodError::precondition(format!("{pod} is not ready")),
        queue::Refusal::PodClosing => PodError::precondition(format!("{pod} is being stopped or removed")),
    }
}

/// For the answer to a caller that waits for a pod's coming up.
pub(crate) type RunOutcome = watch::Sender<Option<Result<(), PodError>>>;
