//! The start of a created container: its first process is told to go, and reports if its execve fails. The end of the
//! report without a word is the success.

use std::os::fd::OwnedFd;

use super::connection::{Answer, Requester};
use super::fault::{Fault, Result};
use super::pod::{Pod, now};
use super::reactor::Source;
use super::runtime;
use crate::executor::protocol::{self, MESSAGE_LIMIT};
use crate::proto::supervisor as wire;
use crate::proto::supervisor::ContainerPhase;
use crate::sys::crash::{self, Point};

impl Pod {
    /// Tells a container to go; the answer comes when its program runs.
    pub(super) fn start(&mut self, asker: Requester, id: &str) -> Result<()> {
        let container = self.containers.get_mut(id).ok_or_else(|| Fault::not_found(format!("container {id}")))?;
        if container.phase != ContainerPhase::Created {
            return Err(Fault::state(format!("container {id} cannot be started: it is {:?}", container.phase)));
        }
        crash::reach(Point::SupervisorStart).map_err(Fault::io("cannot start the container"))?;
        let report =
            container.start_report.as_ref().ok_or_else(|| Fault::state("the container was started already"))?;
        rustix::io::ioctl_fionbio(report, true).map_err(Fault::io("cannot use the container's report"))?;
        self.reactor
            .watch(report, Source::StartReport(id.to_owned()))
            .map_err(Fault::io("cannot watch the container's report"))?;
        container.started_at = now();
        container.phase = ContainerPhase::Running;
        container.starter = Some(asker);
        if let Err(fault) = runtime::start(&container.runtime_dir(), id) {
            container.phase = ContainerPhase::Created;
            container.starter = None;
            self.reactor.forget(report, &Source::StartReport(id.to_owned()));
            return Err(fault);
        }
        Ok(())
    }

    /// Its program runs, or cannot.
    pub(super) fn on_start_report(&mut self, id: &str) {
        self.settle_start(id);
    }

    /// Answers whoever waits for the start. Also when the container has ended meanwhile.
    pub(super) fn settle_start(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(report) = container.start_report.take() else { return };
        self.reactor.forget(&report, &Source::StartReport(id.to_owned()));
        container.start_fault = read_fault(&report);
        let outcome = container.start_fault.clone().map_or_else(|| Ok(Answer::done_at(container.started_at)), Err);
        if let Some(starter) = container.starter.take() {
            self.answer(starter, outcome);
        }
    }
}

/// What a process said about its failure, if it did; never waits.
pub fn read_fault(report: &OwnedFd) -> Option<Fault> {
    let _ = rustix::io::ioctl_fionbio(report, true);
    let received = protocol::receive::<wire::Error>(report, &mut vec![0; MESSAGE_LIMIT]).ok()?;
    Some(received.message.into())
}
