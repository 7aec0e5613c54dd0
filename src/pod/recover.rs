//! The domain's start: what is on disk and what still runs become one picture. Nothing is wiped to get there: what
//! cannot be understood is set aside, what is half made is removed, what runs unknown is ended.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::executor::client::{ExecutorError, Supervisor};
use crate::executor::leftovers;
use crate::pod::context::{Context, blocking, whom_container, whom_pod};
use crate::pod::driver::{Driver, REQUEST_BACKLOG};
use crate::pod::error::{PodError, PodErrorKind};
use crate::pod::member::{Member, exit_on_disk};
use crate::pod::name::{Answered, Answers, ContainerName, PodName};
use crate::pod::record::{self, ContainerRecord, PodRecord};
use crate::pod::table::PodSlot;
use crate::pod::{files, paths, sandbox, update, volumes};
use crate::proto::supervisor as wire;
use crate::proto::supervisor::request::Op;
use crate::store::{ContainerId, PodId, RecordError};

/// Pods that are looked at side by side.
const PARALLEL: usize = 16;
/// A supervisor that lives and does not answer for so long is taken for dead.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one pod's directory holds.
struct Found {
    pod: PodRecord,
    name: PodName,
    containers: Vec<(ContainerName, ContainerRecord)>,
    /// Of a later release: they run on, and are nobody's here.
    foreign: Vec<ContainerId>,
}

/// What the disk holds.
#[derive(Default)]
struct Scan {
    found: Vec<Found>,
    /// Pods of a later release with their containers: left as they are.
    foreign: Vec<(PodId, Vec<ContainerId>)>,
}

/// Fills the table.
pub(crate) async fn recover(context: &Arc<Context>) -> Result<(), PodError> {
    let scanned = {
        let context = Arc::clone(context);
        blocking(move || scan(&context)).await?
    };
    let Scan { found, foreign } = scanned;
    let known: HashSet<PodId> =
        found.iter().map(|f| &f.pod.id).chain(foreign.iter().map(|(id, _)| id)).cloned().collect();
    end_unknown(context, &known).await?;
    let containers = found.iter().flat_map(|f| &f.containers);
    let mut keep: HashSet<String> = containers.flat_map(|(_, c)| volumes::snapshots(&c.id, &c.config)).collect();
    let theirs = found.iter().flat_map(|f| &f.foreign).chain(foreign.iter().flat_map(|(_, containers)| containers));
    keep.extend(theirs.map(ContainerId::to_string));
    context.images.retain_snapshots(&keep).await?;
    let mut others: Vec<PodId> = foreign.into_iter().map(|(id, _)| id).collect();
    let mut rest = found.into_iter();
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        while tasks.len() < PARALLEL
            && let Some(found) = rest.next()
        {
            tasks.spawn(revive(Arc::clone(context), found));
        }
        match tasks.join_next().await {
            None => break,
            Some(Ok(Revived::Ours)) => {}
            Some(Ok(Revived::Foreign(id) | Revived::Unconnected(id))) => others.push(id),
            Some(Ok(Revived::Unread(error))) => return Err(error),
            Some(Err(error)) => tracing::error!(%error, "a pod was not recovered because of a defect"),
        }
    }
    context.networks.settle(others).await;
    context.networks.collect_garbage(known);
    Ok(())
}

fn ids<T: std::str::FromStr>(directory: &Path) -> Result<Vec<T>, PodError> {
    let listed = match fs::read_dir(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| PodError::io(format_args!("list {}", directory.display()), &e))?,
    };
    let names = listed.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>();
    // Whoever is not seen here is ended as unknown.
    let names = names.map_err(|e| PodError::io(format_args!("list {}", directory.display()), &e))?;
    Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

fn scan(context: &Context) -> Result<Scan, PodError> {
    let [pods, state, _] = context.layout.roots();
    files::private_directory(pods)?;
    files::private_directory(state)?;
    let mut scan = Scan::default();
    for id in ids::<PodId>(pods)? {
        match scan_pod(context, &id) {
            Ok(Some(pod)) => scan.found.push(pod),
            Ok(None) => {
                tracing::info!(pod = %id, "a pod that was never up is removed");
                paths::remove_tree(&context.layout.pod(&id))?;
            }
            Err(Unfit::Foreign(error)) => {
                tracing::error!(pod = %id, %error, "a pod is left as it is");
                let containers = ids(&context.layout.pod(&id).join("containers"))?;
                scan.foreign.push((id, containers));
            }
            Err(Unfit::Unread(error)) => return Err(error),
            // It loses its supervisor: that is for records that are no records, and nothing else.
            Err(Unfit::Damaged(error)) => match context.layout.set_aside(&id) {
                Ok(place) => tracing::error!(pod = %id, %error, place = %place.display(), "a pod is set aside"),
                Err(aside) => {
                    tracing::error!(pod = %id, %error, %aside, "a pod is left as it is");
                    let containers = ids(&context.layout.pod(&id).join("containers"))?;
                    scan.foreign.push((id, containers));
                }
            },
        }
    }
    Ok(scan)
}

/// Why a pod or a container cannot be taken over.
enum Unfit {
    /// It is another release's, or the disk does not give it.
    Foreign(PodError),
    /// What the disk has is no record.
    Damaged(PodError),
    /// Something has run out (descriptors, memory): what the disk has is not known.
    Unread(PodError),
}

impl From<RecordError> for Unfit {
    fn from(error: RecordError) -> Self {
        if error.is_damaged() { Self::Damaged(error.into()) } else { PodError::from(error).into() }
    }
}

impl From<PodError> for Unfit {
    fn from(error: PodError) -> Self {
        match error.kind {
            PodErrorKind::ResourceExhausted => Self::Unread(error),
            PodErrorKind::Invalid => Self::Damaged(error),
            _ => Self::Foreign(error),
        }
    }
}

fn scan_pod(context: &Context, id: &PodId) -> Result<Option<Found>, Unfit> {
    let Some(pod) = record::read::<PodRecord>(&context.layout.pod_record(id))? else { return Ok(None) };
    if pod.id != *id {
        return Err(PodError::internal("the record is another pod's").into());
    }
    let name = PodName::of(&pod.config)?;
    let (mut containers, mut foreign) = (Vec::new(), Vec::new());
    for container in ids::<ContainerId>(&context.layout.pod(id).join("containers"))? {
        match record::read::<ContainerRecord>(&context.layout.container_record(id, &container)) {
            Ok(Some(record)) => containers.push((ContainerName::of(&record.config)?, record)),
            Ok(None) => {
                tracing::info!(container = %container, "a container that was never made is removed");
                paths::remove_tree(&context.layout.container(id, &container))?;
            }
            Err(error) => match Unfit::from(error) {
                Unfit::Foreign(error) => {
                    tracing::error!(%container, %error, "a container is left as it is");
                    foreign.push(container);
                }
                Unfit::Damaged(error) => {
                    let place = context.layout.container(id, &container).with_extension("unreadable");
                    tracing::error!(%container, %error, place = %place.display(), "a container is set aside");
                    let _ = fs::rename(context.layout.container(id, &container), place);
                }
                unread @ Unfit::Unread(_) => return Err(unread),
            },
        }
    }
    Ok(Some(Found { pod, name, containers, foreign }))
}

/// Pods at run time without a record: their creation was cut short, or the record was set aside.
async fn end_unknown(context: &Arc<Context>, known: &HashSet<PodId>) -> Result<(), PodError> {
    let [_, state, _] = context.layout.roots();
    for id in ids::<PodId>(state)?.into_iter().filter(|id| !known.contains(id)) {
        let directory = context.layout.pod_state(&id);
        if let Ok((supervisor, hello)) = Supervisor::connect(&directory).await {
            tracing::warn!(pod = %id, pid = hello.pid, "a supervisor without a record is ended");
            let _ = supervisor.call(Op::Shutdown(wire::Shutdown { grace_ms: 0 })).await;
        }
        blocking(move || {
            leftovers::kill(&directory)?;
            paths::remove_tree(&directory)
        })
        .await?;
        context.networks.abandon(&id).await;
    }
    Ok(())
}

/// What became of a pod that the disk holds.
enum Revived {
    /// It is in view.
    Ours,
    /// It is in view, and the network does not know what it has: nothing of that may be removed.
    Unconnected(PodId),
    /// It runs on, and is nobody's here.
    Foreign(PodId),
    /// Something has run out (descriptors, memory): whether it lives is not known.
    Unread(PodError),
}

/// The supervisor of a pod that should have one; none when it is dead.
async fn reach(context: &Context, pod: &PodRecord) -> Result<Option<(Supervisor, wire::HelloReply)>, Revived> {
    if pod.stopped || pod.boot_id != context.facts.boot_id {
        return Ok(None);
    }
    let started = Instant::now();
    let error = loop {
        match Supervisor::connect(&context.layout.pod_state(&pod.id)).await {
            Ok(found) => return Ok(Some(found)),
            // A machine that starts has other things to do too.
            Err(ExecutorError::Timeout(_)) if started.elapsed() < PATIENCE => {}
            Err(error) => break PodError::from(error),
        }
    };
    match error.kind {
        // It speaks another protocol.
        PodErrorKind::FailedPrecondition => {
            tracing::error!(pod = %pod.id, %error, "a pod is left as it is");
            Err(Revived::Foreign(pod.id.clone()))
        }
        PodErrorKind::ResourceExhausted => Err(Revived::Unread(error)),
        _ => {
            tracing::warn!(pod = %pod.id, "{} is dead: {error}", whom_pod(&pod.config));
            Ok(None)
        }
    }
}

/// Brings one pod back to view, with its supervisor if that lives.
async fn revive(context: Arc<Context>, found: Found) -> Revived {
    let id = found.pod.id.clone();
    let mut supervisor = None;
    let mut states = HashMap::new();
    let mut is_connected = true;
    match reach(&context, &found.pod).await {
        Ok(Some((connection, hello))) => {
            let ours = found.containers.iter().map(|(_, c)| &c.id).chain(&found.foreign);
            let known: HashSet<String> = ours.map(ContainerId::to_string).collect();
            end_unknown_containers(&connection, &hello, &known).await;
            states = hello.containers.into_iter().map(|s| (s.container_id.clone(), s)).collect();
            match context.networks.adopt(&found.pod, &connection).await {
                Err(error) if error.kind == PodErrorKind::ResourceExhausted => return Revived::Unread(error),
                Err(error) => {
                    tracing::error!(pod = %id, %error, "what the pod has of the network is not known");
                    is_connected = false;
                }
                Ok(()) => {}
            }
            supervisor = Some(connection);
        }
        Ok(None) => {}
        Err(otherwise) => return otherwise,
    }
    if supervisor.is_none() && !found.pod.stopped {
        let containers = found.containers.iter().map(|(_, c)| Arc::new(c.clone())).collect();
        // Its containers' ends are taken down below, before anybody can ask.
        let ended = sandbox::stop(Arc::clone(&context), Arc::new(found.pod.clone()), containers, None).await;
        if let Err(error) = ended {
            tracing::warn!(pod = %id, %error, "what a dead pod left was not wholly ended");
        }
    }
    let members = members(&context, &found.pod, found.containers, states);
    let (requests, inbox) = mpsc::channel(REQUEST_BACKLOG);
    let (_, outcome) = watch::channel(Some(Ok(())));
    let answered = Answered::found(context.layout.pod(&id).join("answered"));
    let slot = Arc::new(PodSlot::new(id.clone(), found.name.clone(), requests, outcome, answered));
    let (slot, new) = context.table.find_or_insert(&found.name, || slot);
    if !new {
        tracing::error!(pod = %found.pod.id, other = %slot.id, "two pods have one name: this one is left as it is");
        return Revived::Foreign(found.pod.id);
    }
    let driver = Driver::new(context, slot, found.pod, supervisor, members);
    tokio::spawn(driver.run(inbox));
    if is_connected { Revived::Ours } else { Revived::Unconnected(id) }
}

/// Containers that the supervisor made and nobody wrote down: their caller never got an answer.
async fn end_unknown_containers(supervisor: &Supervisor, hello: &wire::HelloReply, known: &HashSet<String>) {
    for state in hello.containers.iter().filter(|s| !known.contains(&s.container_id)) {
        tracing::warn!(container = state.container_id, "a container without a record is ended");
        let container_id = state.container_id.clone();
        let kill = wire::SignalContainer { container_id: container_id.clone(), signal: libc::SIGKILL, all: true };
        let _ = supervisor.call(Op::SignalContainer(kill)).await;
        // Refused until it has ended; then it goes with the pod.
        let _ = supervisor.call(Op::RemoveContainer(wire::RemoveContainer { container_id })).await;
    }
}

fn members(
    context: &Context,
    pod: &PodRecord,
    containers: Vec<(ContainerName, ContainerRecord)>,
    mut states: HashMap<String, wire::ContainerState>,
) -> BTreeMap<ContainerId, Member> {
    let revive = |(name, record): (ContainerName, ContainerRecord)| {
        let record = update::finish(context, pod, record);
        let id = record.id.clone();
        let whom = whom_container(&pod.config, &record.config);
        let answers = Answers::found(&context.layout.container(&pod.id, &id));
        let state = states.remove(id.as_str());
        let exit = state.is_none().then(|| exit_on_disk(&context.layout, &record));
        let mut member = Member::found(name, whom, answers, record, state);
        if let Some(exit) = exit {
            member.exited(exit);
        }
        (id, member)
    };
    containers.into_iter().map(revive).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unfit(number: i32) -> Unfit {
        let source = std::io::Error::from_raw_os_error(number);
        RecordError::Io { path: "/r/pod.json".into(), action: "open", source }.into()
    }

    #[test]
    fn what_could_not_be_read_for_want_of_something_is_not_taken_for_damaged() {
        for number in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            assert!(matches!(unfit(number), Unfit::Unread(_)), "{number}");
        }
        assert!(matches!(unfit(libc::EIO), Unfit::Foreign(_)));
    }
}
