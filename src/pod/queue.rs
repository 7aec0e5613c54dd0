//! What happens to a request, given how its pod stands: pure policy, without locks and without I/O.
//!
//! A request is begun, joined to the work under way for the same thing, made to wait for other work, answered at once,
//! or refused. Whoever waits is asked about again whenever some work ends.
//!
//! ```text
//!              RunPodSandbox              StopPodSandbox, supervisor gone            RemovePodSandbox
//!   (nothing) --------------> Ready ------------------------------------> NotReady ------------------> (nothing)
//!
//!              CreateContainer            StartContainer            its process ended        RemoveContainer
//!   (nothing) ---------------> Created ---------------> Running ------------------> Exited ---------------> (nothing)
//!                                 '---------- supervisor gone, pod stopped -----------^
//! ```

use std::collections::BTreeMap;

use crate::pod::name::ContainerName;
use crate::store::ContainerId;

/// A request without what only its work needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    Create(ContainerName),
    Start(ContainerId),
    Stop(ContainerId),
    Remove(ContainerId),
    Update(ContainerId),
    StopPod,
    RemovePod,
    UpdatePod,
}

/// Work on a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    Create,
    Start,
    Stop,
    Remove,
    Update,
}

/// Work on the pod as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodJob {
    Stop,
    Remove,
    Update,
}

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Running,
    Exited,
}

/// How a container stands.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) name: ContainerName,
    pub(crate) phase: Phase,
    pub(crate) job: Option<Job>,
    /// The answer to its creation reached the caller.
    pub(crate) answered: bool,
    /// It was started, and the answer to that did not reach the caller.
    pub(crate) start_lost: bool,
}

/// How a pod stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodStanding {
    pub(crate) ready: bool,
    pub(crate) job: Option<PodJob>,
    /// Somebody waits to stop or remove the pod: nothing new is begun.
    pub(crate) closing: bool,
    pub(crate) containers: BTreeMap<ContainerId, Standing>,
}

/// What happens to the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Begin the work.
    Begin,
    /// The same is under way on this container: share its outcome.
    Join(ContainerId),
    /// The same is under way on the pod.
    JoinPod,
    /// Ask again when some work has ended.
    Wait,
    /// As [`Verdict::Wait`], and a stop under way with time left is to kill now.
    Hurry,
    /// Nothing to do.
    Done,
    /// This container is what was asked for.
    Found(ContainerId),
    /// Not possible.
    Refuse(Refusal),
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoSuchContainer,
    NameTaken(ContainerId),
    NotCreated(Phase),
    Exited,
    PodNotReady,
    PodClosing,
}

/// The one decision.
pub(crate) fn decide(pod: &PodStanding, wish: &Wish) -> Verdict {
    match wish {
        Wish::Create(name) => create(pod, name),
        Wish::Start(id) => start(pod, id),
        Wish::Stop(id) => match pod.containers.get(id).map(|c| (c.job, c.phase)) {
            None => Verdict::Done,
            Some((Some(Job::Stop), _)) => Verdict::Join(id.clone()),
            Some((Some(_), _)) => Verdict::Wait,
            Some((None, Phase::Running)) => Verdict::Begin,
            Some((None, _)) => Verdict::Done,
        },
        Wish::Remove(id) => match pod.containers.get(id).map(|c| c.job) {
            None => Verdict::Done,
            Some(Some(Job::Remove)) => Verdict::Join(id.clone()),
            Some(Some(_)) => Verdict::Hurry,
            // The pod's own end takes its containers along, or leaves them to be asked about again.
            Some(None) if pod.job.is_some() => Verdict::Wait,
            Some(None) => Verdict::Begin,
        },
        Wish::StopPod => match pod.job {
            Some(PodJob::Stop) => Verdict::JoinPod,
            Some(PodJob::Remove | PodJob::Update) => Verdict::Wait,
            None if !pod.ready => Verdict::Done,
            None => when_idle(pod),
        },
        Wish::RemovePod => match pod.job {
            Some(PodJob::Remove) => Verdict::JoinPod,
            Some(PodJob::Stop | PodJob::Update) => Verdict::Wait,
            None => when_idle(pod),
        },
        Wish::Update(id) => match pod.containers.get(id).map(|c| (c.job, c.phase)) {
            None => Verdict::Refuse(Refusal::NoSuchContainer),
            // Also another change: each is an addition to the one before.
            Some((Some(_), _)) => Verdict::Wait,
            Some((None, Phase::Exited)) => Verdict::Refuse(Refusal::Exited),
            Some((None, _)) => begin_in(pod),
        },
        Wish::UpdatePod => match pod.job {
            Some(PodJob::Update) => Verdict::Wait,
            _ => begin_in(pod),
        },
    }
}

fn create(pod: &PodStanding, name: &ContainerName) -> Verdict {
    if let Some((id, known)) = pod.containers.iter().find(|(_, c)| c.name == *name) {
        return match known.job {
            Some(Job::Create) => Verdict::Join(id.clone()),
            Some(Job::Remove) => Verdict::Wait,
            _ if known.answered => Verdict::Refuse(Refusal::NameTaken(id.clone())),
            _ => Verdict::Found(id.clone()),
        };
    }
    begin_in(pod)
}

fn start(pod: &PodStanding, id: &ContainerId) -> Verdict {
    let Some(container) = pod.containers.get(id) else { return Verdict::Refuse(Refusal::NoSuchContainer) };
    match (container.job, container.phase) {
        (Some(Job::Start), _) => Verdict::Join(id.clone()),
        (Some(_), _) => Verdict::Wait,
        (None, Phase::Created) => begin_in(pod),
        // Also when it has ended since.
        (None, _) if container.start_lost => Verdict::Found(id.clone()),
        (None, phase) => Verdict::Refuse(Refusal::NotCreated(phase)),
    }
}

fn begin_in(pod: &PodStanding) -> Verdict {
    match pod {
        PodStanding { job: Some(PodJob::Stop | PodJob::Remove), .. } | PodStanding { closing: true, .. } => {
            Verdict::Refuse(Refusal::PodClosing)
        }
        PodStanding { ready: false, .. } => Verdict::Refuse(Refusal::PodNotReady),
        _ => Verdict::Begin,
    }
}

fn when_idle(pod: &PodStanding) -> Verdict {
    if pod.containers.values().any(|c| c.job.is_some()) { Verdict::Hurry } else { Verdict::Begin }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri;

    fn name(text: &str) -> ContainerName {
        let metadata = Some(cri::ContainerMetadata { name: text.into(), attempt: 0 });
        ContainerName::of(&cri::ContainerConfig { metadata, ..Default::default() }).expect("a name")
    }

    fn pod(phase: Phase, job: Option<Job>, answered: bool) -> (PodStanding, ContainerId) {
        let id = ContainerId::random();
        let standing = Standing { name: name("app"), phase, job, answered, start_lost: false };
        (PodStanding { ready: true, containers: [(id.clone(), standing)].into(), ..Default::default() }, id)
    }

    #[test]
    fn a_repeated_create_gets_the_same_container_until_the_first_was_answered() {
        let (under_way, id) = pod(Phase::Created, Some(Job::Create), false);
        assert_eq!(decide(&under_way, &Wish::Create(name("app"))), Verdict::Join(id));
        let (lost, id) = pod(Phase::Created, None, false);
        assert_eq!(decide(&lost, &Wish::Create(name("app"))), Verdict::Found(id));
        let (answered, id) = pod(Phase::Created, None, true);
        assert_eq!(decide(&answered, &Wish::Create(name("app"))), Verdict::Refuse(Refusal::NameTaken(id)));
        assert_eq!(decide(&answered, &Wish::Create(name("other"))), Verdict::Begin);
    }

    #[test]
    fn a_name_is_free_again_once_its_removal_is_over() {
        let (mut removing, id) = pod(Phase::Exited, Some(Job::Remove), true);
        assert_eq!(decide(&removing, &Wish::Create(name("app"))), Verdict::Wait);
        removing.containers.remove(&id);
        assert_eq!(decide(&removing, &Wish::Create(name("app"))), Verdict::Begin);
    }

    #[test]
    fn only_a_created_container_starts() {
        let (created, id) = pod(Phase::Created, None, true);
        assert_eq!(decide(&created, &Wish::Start(id)), Verdict::Begin);
        for phase in [Phase::Running, Phase::Exited] {
            let (other, id) = pod(phase, None, true);
            assert_eq!(decide(&other, &Wish::Start(id)), Verdict::Refuse(Refusal::NotCreated(phase)));
        }
        let unknown = ContainerId::random();
        assert_eq!(decide(&created, &Wish::Start(unknown)), Verdict::Refuse(Refusal::NoSuchContainer));
    }

    #[test]
    fn a_start_whose_answer_was_lost_is_found_done() {
        for phase in [Phase::Running, Phase::Exited] {
            let (mut pod, id) = pod(phase, None, true);
            pod.containers.get_mut(&id).expect("it is there").start_lost = true;
            assert_eq!(decide(&pod, &Wish::Start(id.clone())), Verdict::Found(id));
        }
    }

    #[test]
    fn stops_and_removals_become_idempotent() {
        let (running, id) = pod(Phase::Running, None, true);
        assert_eq!(decide(&running, &Wish::Stop(id.clone())), Verdict::Begin);
        assert_eq!(decide(&running, &Wish::Remove(id)), Verdict::Begin);
        let (stopping, id) = pod(Phase::Running, Some(Job::Stop), true);
        assert_eq!(decide(&stopping, &Wish::Stop(id.clone())), Verdict::Join(id.clone()));
        assert_eq!(decide(&stopping, &Wish::Remove(id)), Verdict::Hurry);
        let (exited, id) = pod(Phase::Exited, None, true);
        assert_eq!(decide(&exited, &Wish::Stop(id)), Verdict::Done);
        let gone = ContainerId::random();
        assert_eq!(decide(&exited, &Wish::Stop(gone.clone())), Verdict::Done);
        assert_eq!(decide(&exited, &Wish::Remove(gone)), Verdict::Done);
    }

    #[test]
    fn a_pod_stops_when_its_containers_work_has_ended_and_nothing_new_begins() {
        let (mut busy, id) = pod(Phase::Running, Some(Job::Stop), true);
        assert_eq!(decide(&busy, &Wish::StopPod), Verdict::Hurry);
        busy.closing = true;
        assert_eq!(decide(&busy, &Wish::Create(name("other"))), Verdict::Refuse(Refusal::PodClosing));
        busy.containers.get_mut(&id).expect("there").job = None;
        assert_eq!(decide(&busy, &Wish::StopPod), Verdict::Begin);
        busy.job = Some(PodJob::Stop);
        assert_eq!(decide(&busy, &Wish::StopPod), Verdict::JoinPod);
        assert_eq!(decide(&busy, &Wish::RemovePod), Verdict::Wait);
    }

    #[test]
    fn limits_change_while_a_container_lives_and_one_change_after_the_other() {
        let (running, id) = pod(Phase::Running, None, true);
        assert_eq!(decide(&running, &Wish::Update(id)), Verdict::Begin);
        let (busy, id) = pod(Phase::Running, Some(Job::Update), true);
        assert_eq!(decide(&busy, &Wish::Update(id.clone())), Verdict::Wait);
        assert_eq!(decide(&busy, &Wish::Stop(id)), Verdict::Wait);
        let (exited, id) = pod(Phase::Exited, None, true);
        assert_eq!(decide(&exited, &Wish::Update(id)), Verdict::Refuse(Refusal::Exited));
        let (mut changing, _) = pod(Phase::Running, None, true);
        changing.job = Some(PodJob::Update);
        assert_eq!(decide(&changing, &Wish::UpdatePod), Verdict::Wait);
        assert_eq!(decide(&changing, &Wish::StopPod), Verdict::Wait);
        assert_eq!(decide(&changing, &Wish::Create(name("other"))), Verdict::Begin);
    }

    #[test]
    fn a_pod_that_is_not_ready_only_ends() {
        let (mut dead, _) = pod(Phase::Created, None, true);
        dead.ready = false;
        let id = dead.containers.keys().next().expect("one").clone();
        assert_eq!(decide(&dead, &Wish::Create(name("other"))), Verdict::Refuse(Refusal::PodNotReady));
        assert_eq!(decide(&dead, &Wish::Start(id)), Verdict::Refuse(Refusal::PodNotReady));
        assert_eq!(decide(&dead, &Wish::StopPod), Verdict::Done);
        assert_eq!(decide(&dead, &Wish::RemovePod), Verdict::Begin);
    }
}
