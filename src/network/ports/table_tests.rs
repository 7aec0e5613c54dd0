//! A forwarder that is lost, or does not answer: whoever is behind the door here is none.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::super::wire;
use super::*;
use crate::sys::process::ProcessId;

/// For what takes a fraction of it on a machine that does other things too.
const LONG: Duration = Duration::from_secs(20);

/// Goes with the test.
struct State(PathBuf);

impl State {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cricket-ports-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn launch(&self, patience: Duration) -> Launch {
        Launch { state: self.0.clone(), executable: "/nowhere".into(), namespace: None, patience }
    }

    /// As a forwarder that an earlier daemon started.
    fn recorded(&self) -> Recorded {
        let child = Command::new("sleep").arg("1000").spawn().expect("sleep runs");
        let process = ProcessId::of(child.id() as i32).expect("it runs");
        let record = serde_json::json!({ "version": 1, "process": process });
        std::fs::write(self.0.join("forwarder.json"), record.to_string()).expect("written");
        Recorded { child, process }
    }

    fn door(&self) -> OwnedFd {
        super::super::process::door(&self.0).expect("a door")
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Recorded {
    child: Child,
    process: ProcessId,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

#[test]
fn a_forwarder_whose_socket_is_gone_is_ended() {
    let state = State::new("gone");
    let recorded = state.recorded();
    let (jobs, _todo) = mpsc::channel();
    let ports = Ports::with(state.launch(LONG), None, jobs);
    assert!(ports.link.is_none() && !recorded.process.is_alive());
    assert!(!state.0.join("forwarder.json").exists());
}

#[test]
fn a_forwarder_that_does_not_answer_is_ended_and_what_it_answers_late_answers_nothing() {
    let state = State::new("silent");
    let recorded = state.recorded();
    let door = state.door();
    let (jobs, todo) = mpsc::channel();
    let mut ports = Ports::with(state.launch(Duration::from_millis(50)), None, jobs);
    assert!(ports.link.is_some());
    let pod = PodId::random();
    ports.release(&pod).expect("it has nothing of the pod any more");
    assert!(ports.link.is_none() && !recorded.process.is_alive());
    // It stood at the door all the while; what it says now is heard by nobody.
    let daemon = rustix::net::accept(&door).expect("a daemon");
    assert!(wire::receive::<Request>(&daemon).expect("asked").is_some());
    assert!(wire::send(&daemon, &Reply::default(), &[]).is_err());
    assert!(matches!(ports.link(), Err(PortsError::Forwarder { action: "started", .. })));
    // The others' ports are to be served again; the end of the link that was given up is no other one's.
    let started = Instant::now();
    while started.elapsed() < LONG
        && let Ok(job) = todo.try_recv()
    {
        job(&mut ports);
    }
    assert!(ports.pods.is_empty() && started.elapsed() < LONG);
}

#[tokio::test]
async fn a_pod_without_host_ports_does_not_wait_for_a_forwarder_that_is_slow() {
    let state = State::new("slow");
    let door = state.door();
    let options = PortsOptions { state: state.0.clone(), executable: "/nowhere".into(), node: None, lookout: None };
    let ports = super::super::HostPorts::start(options).expect("a thread");
    let slow = tokio::spawn({
        let ports = ports.clone();
        async move { ports.settle().await }
    });
    let daemon = tokio::task::spawn_blocking(move || {
        let daemon = rustix::net::accept(&door).expect("a daemon");
        assert!(matches!(wire::receive::<Request>(&daemon), Ok(Some((Request::List, _)))));
        daemon
    });
    let daemon = daemon.await.expect("it asked");
    let pod = PodId::random();
    ports.publish(&pod, Destination::default()).await.expect("nothing to publish");
    ports.release(&pod).await.expect("nothing to release");
    assert!(!slow.is_finished(), "somebody else waits");
    wire::send(&daemon, &Reply::default(), &[]).expect("sent");
    slow.await.expect("no panic").expect("answered");
}
