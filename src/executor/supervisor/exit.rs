//! Ends: of creators, of containers, of exec'd processes and of strangers that this process inherited.
//!
//! The record RECORD_DIR/containers/ID/exit.json is `{"version": 1, ...}` with the fields of `ContainerExit`
//! (proto/supervisor.proto); it is durable before any daemon hears of the exit.

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::creation::STRAYS_LIMIT;
use super::pod::{Pod, now};
use super::signals::{self, Ending};
use super::{cgroup, container};
use crate::proto::supervisor as wire;
use crate::proto::supervisor::{ContainerPhase, NamespaceMode, event};
use crate::store;
use crate::sys::crash::{self, Point};

/// Layout of the record.
const VERSION: u32 = 1;
/// How an exit is explained.
const COMPLETED: &str = "Completed";
const FAILED: &str = "Error";
const OUT_OF_MEMORY: &str = "OOMKilled";
const NOT_STARTED: &str = "StartError";

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    version: u32,
    #[serde(flatten)]
    exit: wire::ContainerExit,
}

impl Pod {
    /// Children have ended.
    pub(super) fn on_children(&mut self) {
        while let Ok(Some(_)) = self.children.read_signal() {}
        while let Some(ending) = signals::reap() {
            self.child_ended(ending);
        }
    }

    fn child_ended(&mut self, ending: Ending) {
        let creator = |c: &container::Container| c.creation.as_ref().is_some_and(|creation| creation.pid == ending.pid);
        let found = self.containers.values().find(|c| c.pid == ending.pid || creator(c));
        if let Some((id, is_creator)) = found.map(|c| (c.id.clone(), creator(c))) {
            return if is_creator { self.creation_ended(&id, ending) } else { self.container_ended(&id, ending) };
        }
        let exec = self.execs.iter().find(|(_, exec)| exec.pid == ending.pid).map(|(id, _)| id.clone());
        if let Some(id) = exec {
            return self.exec_ended(&id, ending);
        }
        // A runtime's helper, an orphan of a container, or a first process whose creator has not reported yet.
        if self.containers.values().any(|c| c.creation.is_some()) {
            if self.strays.len() == STRAYS_LIMIT {
                self.strays.pop_front();
            }
            self.strays.push_back(ending);
        } else {
            self.strays.clear();
        }
    }

    /// A container's first process has ended, and with it the container.
    pub(super) fn container_ended(&mut self, id: &str, ending: Ending) {
        self.settle_start(id);
        self.unwatch_output(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        container.pid = 0;
        if container.pid_mode != NamespaceMode::Container {
            container.signal_all(Signal::KILL);
        }
        // Numbers of namespaces are used again.
        container.mount_namespace = 0;
        container.phase = ContainerPhase::Exited;
        container.stdin = None;
        container.log.finish(&mut self.scratch);
        container.terminal = None;
        container.start_report = None;
        let _ = store::remove(&container.bundle.join("process.json"));
        let exit = describe(container, ending);
        container.exit = Some(exit.clone());
        let path = self.record_dir.join("containers").join(id).join("exit.json");
        let _ = crash::reach(Point::SupervisorExited);
        if let Err(error) = store::write(&path, &ExitRecord { version: VERSION, exit: exit.clone() }) {
            eprintln!("the exit of container {id} is only in memory: {error}");
        }
        let _ = crash::reach(Point::SupervisorExitRecorded);
        self.after_log(id);
        self.tell(event::Event::ContainerExited(exit));
    }
}

fn describe(container: &container::Container, ending: Ending) -> wire::ContainerExit {
    let starved = container.cgroup.as_deref().is_some_and(|directory| cgroup::oom_kills(directory) > 0);
    let oom_killed = starved && ending.exit_code != 0;
    let reason = match (&container.start_fault, ending.exit_code) {
        (Some(_), _) => NOT_STARTED,
        (None, _) if oom_killed => OUT_OF_MEMORY,
        (None, 0) => COMPLETED,
        (None, _) => FAILED,
    };
    wire::ContainerExit {
        container_id: container.id.clone(),
        exit_code: ending.exit_code,
        signal: ending.signal,
        oom_killed,
        started_at: container.started_at,
        finished_at: now(),
        reason: reason.to_owned(),
        message: container.start_fault.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_read_back_and_also_as_the_bare_message() {
        let exit = wire::ContainerExit { container_id: "a".into(), exit_code: 3, ..Default::default() };
        let text = serde_json::to_string(&ExitRecord { version: VERSION, exit: exit.clone() }).expect("written");
        assert_eq!(serde_json::from_str::<ExitRecord>(&text).expect("read").exit, exit);
        assert_eq!(serde_json::from_str::<wire::ContainerExit>(&text).expect("read"), exit);
    }
}
