//! A container as its pod's task keeps it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::pod::events::now;
use crate::pod::name::{Answers, ContainerName};
use crate::pod::queue::{Job, Phase, Standing};
use crate::pod::record::{ContainerRecord, Layout};
use crate::pod::view::{ContainerView, Listed};
use crate::proto::supervisor as wire;
use crate::store;

/// As a shell says it: killed by SIGKILL.
const KILLED: i32 = 128 + libc::SIGKILL;

/// See the module.
pub(crate) struct Member {
    pub(crate) name: ContainerName,
    /// For messages.
    pub(crate) whom: String,
    pub(crate) phase: Phase,
    pub(crate) job: Option<Job>,
    pub(crate) answers: Answers,
    pub(crate) log_trouble: String,
    /// None while it is made.
    record: Option<Arc<ContainerRecord>>,
    started_at: i64,
    exit: Option<Arc<wire::ContainerExit>>,
    ended: watch::Sender<bool>,
    stop_by: Option<watch::Sender<Instant>>,
}

impl Member {
    /// Its creation begins.
    pub(crate) fn creating(name: ContainerName, whom: String, answers: Answers) -> Self {
        Self {
            name,
            whom,
            phase: Phase::Created,
            job: Some(Job::Create),
            answers,
            log_trouble: String::new(),
            record: None,
            started_at: 0,
            exit: None,
            ended: watch::Sender::new(false),
            stop_by: None,
        }
    }

    /// Found again after a restart, as the supervisor says it stands.
    pub(crate) fn found(
        name: ContainerName,
        whom: String,
        answers: Answers,
        record: ContainerRecord,
        state: Option<wire::ContainerState>,
    ) -> Self {
        let mut member = Self::creating(name, whom, answers);
        (member.job, member.record) = (None, Some(Arc::new(record)));
        if let Some(state) = state {
            member.started_at = state.started_at;
            if state.phase() == wire::ContainerPhase::Running {
                member.phase = Phase::Running;
            }
            if let Some(exit) = state.exit {
                member.exited(exit);
            }
        }
        member
    }

    /// For the policy.
    pub(crate) fn standing(&self) -> Standing {
        let answered = self.answers.created.is_marked();
        let start_lost = self.started_at != 0 && !self.answers.started.is_marked();
        Standing { name: self.name.clone(), phase: self.phase, job: self.job, answered, start_lost }
    }

    /// None while it is made.
    pub(crate) fn record(&self) -> Option<Arc<ContainerRecord>> {
        self.record.clone()
    }

    /// For clients; none while it is made.
    pub(crate) fn view(&self) -> Option<ContainerView> {
        Some(ContainerView {
            record: self.record()?,
            phase: self.phase,
            started_at: self.started_at,
            exit: self.exit.clone(),
            log_trouble: self.log_trouble.clone(),
            listed: Listed::default(),
        })
    }

    /// True from its end on.
    pub(crate) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// Its creation is over.
    pub(crate) fn created(&mut self, record: ContainerRecord) {
        self.record = Some(Arc::new(record));
        self.job = None;
    }

    /// Its limits are others.
    pub(crate) fn updated(&mut self, record: ContainerRecord) {
        self.record = Some(Arc::new(record));
    }

    /// It runs since `at`. Its end may have been heard before.
    pub(crate) fn started(&mut self, at: i64) {
        if self.phase == Phase::Created {
            (self.phase, self.started_at) = (Phase::Running, at);
        }
    }

    /// It ended; false: that was known.
    pub(crate) fn exited(&mut self, exit: wire::ContainerExit) -> bool {
        if self.phase == Phase::Exited {
            return false;
        }
        if exit.started_at != 0 {
            self.started_at = exit.started_at;
        }
        self.phase = Phase::Exited;
        self.exit = Some(Arc::new(exit));
        self.ended.send_replace(true);
        true
    }

    /// A stop begins.
    pub(crate) fn begin_stop(&mut self, deadline: Instant) -> watch::Receiver<Instant> {
        let (sender, receiver) = watch::channel(deadline);
        self.stop_by = Some(sender);
        receiver
    }

    /// A stop under way has until `deadline`, if that is earlier.
    pub(crate) fn stop_by(&self, deadline: Instant) {
        if let Some(sender) = &self.stop_by {
            sender.send_if_modified(|known| {
                let earlier = deadline < *known;
                *known = deadline.min(*known);
                earlier
            });
        }
    }

    /// A stop under way kills now.
    pub(crate) fn hurry(&self) {
        self.stop_by(Instant::now());
    }
}

/// How a container ended whose supervisor cannot be asked: as it wrote down, or killed with the supervisor; the
/// latter is written down in its place, so that every later daemon says the same.
pub(crate) fn exit_on_disk(layout: &Layout, record: &ContainerRecord) -> wire::ContainerExit {
    if let Some(exit) = layout.exit_record(&record.pod, &record.id) {
        return exit;
    }
    let exit = wire::ContainerExit {
        container_id: record.id.to_string(),
        exit_code: KILLED,
        signal: libc::SIGKILL,
        finished_at: now(),
        reason: "SupervisorGone".to_owned(),
        message: "the pod's supervisor ended (killed, or the machine restarted), and the container with it".to_owned(),
        ..Default::default()
    };
    let path = layout.container(&record.pod, &record.id).join("exit.json");
    if let Err(error) = store::write(&path, &exit) {
        tracing::warn!(container = %record.id, %error, "the end of a container was not recorded");
    }
    exit
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri;

    fn member() -> Member {
        let metadata = Some(cri::ContainerMetadata { name: "app".into(), attempt: 0 });
        let name = ContainerName::of(&cri::ContainerConfig { metadata, ..Default::default() }).expect("a name");
        Member::creating(name, "app".into(), Answers::not_yet("/nonexistent".as_ref()))
    }

    #[test]
    fn an_end_heard_before_the_start_is_answered_stays_the_end() {
        let mut member = member();
        assert!(member.exited(wire::ContainerExit { exit_code: 3, started_at: 7, ..Default::default() }));
        member.started(5);
        assert_eq!(member.phase, Phase::Exited);
        assert!(*member.ended().borrow());
        assert!(!member.exited(wire::ContainerExit::default()), "an end is told once");
    }

    #[test]
    fn a_stop_can_be_hurried_but_never_slowed_down() {
        let mut member = member();
        let soon = Instant::now() + std::time::Duration::from_secs(10);
        let receiver = member.begin_stop(soon);
        member.stop_by(soon + std::time::Duration::from_secs(60));
        assert_eq!(*receiver.borrow(), soon);
        member.hurry();
        assert!(*receiver.borrow() < soon);
    }
}
