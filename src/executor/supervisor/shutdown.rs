//! The pod's end: everything is asked to go, then made to, waited for, recorded; then the supervisor leaves.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::connection::{Answer, Requester};
use super::container::{Container, signal_process};
use super::fault::{Fault, Result};
use super::pod::Pod;
use crate::proto::supervisor as wire;
use crate::proto::supervisor::ContainerPhase;
use crate::sys::crash::{self, Point};

/// Longest grace that is granted.
const GRACE_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Between two rounds of killing what is left.
const KILL_AGAIN: Duration = Duration::from_millis(500);
/// For the last answers to be taken.
const FAREWELL: Duration = Duration::from_secs(2);

/// A shutdown under way.
pub struct Shutdown {
    askers: Vec<Requester>,
    kill_at: Instant,
    over: bool,
}

impl Shutdown {
    /// Whether nothing is left.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// When to kill what is left.
    pub fn deadline(&self) -> Option<Instant> {
        Some(self.kill_at)
    }
}

impl Pod {
    /// Begins, or joins, the pod's end.
    pub(super) fn shut_down(&mut self, asker: Requester, request: &wire::Shutdown) -> Result<()> {
        crash::reach(Point::SupervisorShutdown).map_err(Fault::io("cannot end the pod"))?;
        let now = Instant::now();
        let grace = Duration::from_millis(request.grace_ms).min(GRACE_LIMIT);
        match &mut self.shutdown {
            Some(shutdown) => {
                shutdown.askers.push(asker);
                shutdown.kill_at = shutdown.kill_at.min(now + grace);
            }
            None => {
                if !grace.is_zero() {
                    for container in self.containers.values().filter(|container| container.is_alive()) {
                        signal_process(container.pid, Signal::TERM);
                    }
                }
                self.shutdown = Some(Shutdown { askers: vec![asker], kill_at: now + grace, over: false });
            }
        }
        self.on_shutdown_time(now);
        Ok(())
    }

    /// Kills what is left when its time has come, and sees whether all are gone.
    pub(super) fn on_shutdown_time(&mut self, now: Instant) {
        let Some(shutdown) = &mut self.shutdown else { return };
        let left = || self.containers.values().filter(|c| c.phase != ContainerPhase::Exited);
        if left().next().is_none() {
            shutdown.over = true;
        } else if shutdown.kill_at <= now {
            shutdown.kill_at = now + KILL_AGAIN;
            left().for_each(make_go);
        }
    }

    /// Answers whoever asked for the end. The exit code of this process.
    pub(super) fn leave(mut self) -> i32 {
        for container in self.containers.values() {
            container.signal_all(Signal::KILL);
            if let Some(directory) = &container.cgroup {
                let _ = super::cgroup::remove(directory);
            }
        }
        self.scratch.scribe().end();
        let askers = self.shutdown.take().map(|shutdown| shutdown.askers).unwrap_or_default();
        for asker in askers {
            self.answer(asker, Ok(Answer::empty()));
        }
        let give_up = Instant::now() + FAREWELL;
        while self.connections.values().any(|c| c.outbox.wants_write()) && Instant::now() < give_up {
            let Ok(ready) = self.reactor.wait(Some(give_up)) else { break };
            for ready in ready {
                if let super::reactor::Source::Connection(id) = ready.source {
                    self.on_connection(id, &super::reactor::Ready { readable: false, ..ready });
                }
            }
        }
        0
    }
}

fn make_go(container: &Container) {
    if let Some(creation) = &container.creation {
        creation.kill(&container.bundle);
    }
    container.signal_all(Signal::KILL);
}
