//! A record that was cut short, overwritten with zeros or with rubbish costs what it was about and nothing else: it is
//! set aside with a message that names it. One of a later release is left alone, with what it is about. An earlier one
//! is read.

use std::path::{Path, PathBuf};

use cricket::executor::protocol::{self, Received};
use cricket::proto::{cri, supervisor as wire};
use serde_json::Value;

use crate::node::{DEMO, Node, container, eventually, pod, processes_with, succeed, text};

/// What a disk makes of a record.
const DAMAGES: [(&str, fn(&[u8]) -> Vec<u8>); 4] = [
    ("empty", |_| Vec::new()),
    ("cut", |whole| whole[..whole.len() / 2].to_vec()),
    ("zeros", |whole| vec![0; whole.len()]),
    ("rubbish", |whole| whole.iter().map(|byte| byte ^ 0x5a).collect()),
];

/// A pod with one container that runs.
struct Pod {
    name: String,
    id: String,
    container: String,
}

async fn run(node: &Node, name: &str) -> Pod {
    let config = pod(node, name);
    let id = node.run_pod(&config).await;
    let container = node.start_container(&id, container("main", &["demo", "sleep", "inf", name]), &config).await;
    eventually("it runs", || (processes_with(name).len() == 1).then_some(())).await;
    Pod { name: name.to_owned(), id, container }
}

impl Pod {
    fn record(&self, node: &Node) -> PathBuf {
        node.root().join("pods").join(&self.id).join("pod.json")
    }

    fn of_container(&self, node: &Node, name: &str) -> PathBuf {
        node.root().join("pods").join(&self.id).join("containers").join(&self.container).join(name)
    }

    async fn is_whole(&self, node: &Node) {
        assert_eq!(node.pod_status(&self.id).await.state(), cri::PodSandboxState::SandboxReady, "{}", self.name);
        let answer = node.exec(&self.container, &["demo", "echo", "fine"], 10).await.expect("ExecSync");
        assert_eq!(answer.stdout, b"fine\n", "{}", self.name);
    }

    async fn is_unknown(&self, node: &Node) -> bool {
        let request = cri::ListPodSandboxRequest::default();
        let pods = node.runtime().await.list_pod_sandbox(request).await.expect("ListPodSandbox").into_inner().items;
        pods.iter().all(|pod| pod.id != self.id)
    }
}

/// The daemon is killed, something is changed, another daemon starts.
async fn restart_after(node: &mut Node, change: impl FnOnce(&Node)) {
    node.kill_daemon();
    std::fs::write(node.daemon_log(), "").expect("a file of ours");
    change(node);
    node.serve();
    node.wait_until_ready().await;
}

fn damage(path: &Path, how: fn(&[u8]) -> Vec<u8>) {
    let whole = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    std::fs::write(path, how(&whole)).expect("a file of ours");
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut record: Value = serde_json::from_slice(&std::fs::read(path).expect("a record")).expect("JSON");
    change(&mut record);
    std::fs::write(path, record.to_string()).expect("a file of ours");
}

fn said(node: &Node, record: &Path) {
    let log = text(&std::fs::read(node.daemon_log()).expect("a log"));
    assert!(log.contains(&record.display().to_string()), "{} is not named:\n{log}", record.display());
}

#[tokio::test]
async fn a_damaged_record_costs_what_it_is_about_and_nothing_else() {
    let mut node = Node::start().await;
    node.load_demo().await;
    let bystander = run(&node, "bystander").await;
    for (name, how) in DAMAGES {
        // The pod's: it is ended and set aside.
        let doomed = run(&node, &format!("pod-{name}")).await;
        let record = doomed.record(&node);
        restart_after(&mut node, |_| damage(&record, how)).await;
        said(&node, &record);
        assert!(doomed.is_unknown(&node).await);
        assert!(node.root().join("unreadable").join(&doomed.id).join("pod.json").exists(), "{name}");
        eventually("its process is ended", || processes_with(&doomed.name).is_empty().then_some(())).await;
        bystander.is_whole(&node).await;
        // Its name is free.
        let again = run(&node, &doomed.name).await;

        // A container's: it is ended, its pod is not.
        let record = again.of_container(&node, "container.json");
        restart_after(&mut node, |_| damage(&record, how)).await;
        said(&node, &record);
        eventually("its process is ended", || processes_with(&again.name).is_empty().then_some(())).await;
        assert_eq!(node.pod_status(&again.id).await.state(), cri::PodSandboxState::SandboxReady);
        let config = pod(&node, &again.name);
        let next = container("main", &["demo", "exit", "7"]);
        let next = Pod { container: node.start_container(&again.id, next, &config).await, ..again };

        // An exit's, of a pod whose supervisor is gone: how it ended is not known any more.
        assert_eq!(node.exit_of(&next.container).await.exit_code, 7);
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: next.id.clone() };
        node.runtime().await.stop_pod_sandbox(request).await.expect("StopPodSandbox");
        let record = next.of_container(&node, "exit.json");
        restart_after(&mut node, |_| damage(&record, how)).await;
        said(&node, &record);
        assert!(record.with_file_name("exit.json.unreadable").exists());
        let status = node.container_status(&next.container).await;
        assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 137), "{status:?}");
        node.remove_pod(&next.id).await;
        bystander.is_whole(&node).await;

        // What is left of a dead pod, and the node's own record: the node process is found again.
        let orphan = run(&node, &format!("orphan-{name}")).await;
        let state = node.dir.join("run/pods").join(&orphan.id);
        let node_record = node.dir.join("run/node.json");
        restart_after(&mut node, |_| {
            damage(&state.join("supervisor.json"), how);
            damage(&node_record, how);
        })
        .await;
        said(&node, &node_record);
        orphan.is_whole(&node).await;
        node.remove_pod(&orphan.id).await;
        bystander.is_whole(&node).await;

        // An image's: it is pulled again.
        let images = node.root().join("images/images");
        let files = std::fs::read_dir(&images).expect("images").flatten().map(|entry| entry.path());
        let record = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "json")).expect("an image");
        restart_after(&mut node, |_| damage(&record, how)).await;
        said(&node, &record);
        bystander.is_whole(&node).await;
        node.load_demo().await;
        succeed(&mut node.cricket(["image", "verify"]));
    }
    // A command line that meets the damage first mends it too.
    damage(&node.dir.join("run/node.json"), DAMAGES[1].1);
    succeed(&mut node.cricket(["enter", "--", "true"]));
    damage(&node.dir.join("run/node.json"), DAMAGES[2].1);
    std::fs::remove_dir_all(node.root().join("unreadable")).expect("what was set aside");
    node.stop_and_account().await;
}

#[tokio::test]
async fn records_of_a_later_release_are_left_alone_and_earlier_ones_are_read() {
    let mut node = Node::start().await;
    node.load_demo().await;
    let (later, mixed, earlier) = (run(&node, "later").await, run(&node, "mixed").await, run(&node, "earlier").await);
    let records = [later.record(&node), mixed.of_container(&node, "container.json"), earlier.record(&node)];
    let newer = |record: &mut Value| {
        record["version"] = 1000.into();
        record["config"] = "of another kind".into();
    };
    restart_after(&mut node, |_| {
        edit(&records[0], newer);
        edit(&records[1], newer);
        edit(&records[2], |record| drop(record.as_object_mut().expect("a record").remove("network")));
    })
    .await;
    for record in &records[..2] {
        said(&node, record);
    }
    let log = text(&std::fs::read(node.daemon_log()).expect("a log"));
    assert!(log.contains("a newer cricket wrote it"), "{log}");
    assert!(later.is_unknown(&node).await);
    earlier.is_whole(&node).await;
    assert_eq!(node.pod_status(&mixed.id).await.state(), cri::PodSandboxState::SandboxReady);
    // What they are about runs on, with its files, and is there again for who knows them.
    for (record, name) in [(&records[0], "later"), (&records[1], "mixed")] {
        assert_eq!(processes_with(name).len(), 1, "{name}");
        assert!(record.exists(), "{name}");
    }
    let restore = |record: &mut Value, config: Value| {
        record["version"] = 1.into();
        record["config"] = config;
    };
    let config = serde_json::to_value(pod(&node, "later")).expect("JSON");
    let of_container = container("main", &["demo", "sleep", "inf", "mixed"]);
    let of_container = serde_json::to_value(of_container).expect("JSON");
    restart_after(&mut node, |_| {
        edit(&records[0], |record| restore(record, config));
        edit(&records[1], |record| restore(record, of_container));
    })
    .await;
    for whole in [&later, &mixed, &earlier] {
        whole.is_whole(&node).await;
        node.remove_pod(&whole.id).await;
    }

    // An image of a later release keeps its layers, whatever is removed beside it.
    let images = node.root().join("images/images");
    let files = std::fs::read_dir(&images).expect("images").flatten().map(|entry| entry.path());
    let record = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "json")).expect("an image");
    restart_after(&mut node, |_| edit(&record, |record| record["version"] = 1000.into())).await;
    said(&node, &record);
    let _ = node.cricket(["image", "remove", DEMO]).output();
    assert_eq!(std::fs::read_dir(node.root().join("images/layers")).expect("layers").count(), 1);

    // A node of a later release is not replaced by one of ours.
    node.kill_daemon();
    let node_record = node.dir.join("run/node.json");
    edit(&node_record, |record| record["version"] = 1000.into());
    for arguments in [&["enter", "--", "true"][..], &["stop", "--pods"], &["serve"]] {
        let (_, said) = crate::node::fail(&mut node.cricket(arguments));
        assert!(said.contains("a newer cricket wrote it") && said.contains("node.json"), "{arguments:?}: {said}");
    }
    edit(&node_record, |record| record["version"] = 1.into());
    node.serve();
    node.wait_until_ready().await;
    node.stop_and_account().await;
}

/// Answers the daemon's first word as a supervisor of another release would.
fn speak_otherwise(state: &Path) -> std::thread::JoinHandle<()> {
    let listener = protocol::listen(state, protocol::SUPERVISOR_SOCKET).expect("bound");
    std::thread::spawn(move || {
        let asked = rustix::net::accept(&listener).expect("the daemon");
        let mut buffer = vec![0; protocol::MESSAGE_LIMIT];
        let request: Received<wire::Request> = protocol::receive(&asked, &mut buffer).expect("a request");
        let hello = wire::HelloReply { version: 99_000, release: "99.0.0".to_owned(), ..wire::HelloReply::default() };
        let reply = wire::Reply { id: request.message.id, result: Some(wire::reply::Result::Hello(hello)) };
        let message = wire::FromSupervisor { message: Some(wire::from_supervisor::Message::Reply(reply)) };
        protocol::send(&asked, &message, &[]).expect("sent");
    })
}

#[tokio::test]
async fn a_supervisor_that_speaks_another_protocol_keeps_its_pod() {
    let mut node = Node::start().await;
    node.load_demo().await;
    let theirs = run(&node, "theirs").await;
    let ours = run(&node, "ours").await;
    let state = node.dir.join("run/pods").join(&theirs.id);
    let (socket, aside) = (state.join(protocol::SUPERVISOR_SOCKET), state.join("aside"));
    let mut other = None;
    restart_after(&mut node, |_| {
        std::fs::rename(&socket, &aside).expect("a socket");
        other = Some(speak_otherwise(&state));
    })
    .await;
    other.expect("it was started").join().expect("it was asked");
    let log = text(&std::fs::read(node.daemon_log()).expect("a log"));
    assert!(log.contains("speaks protocol 99000 (cricket 99.0.0)") && log.contains(&theirs.id), "{log}");
    assert!(theirs.is_unknown(&node).await);
    ours.is_whole(&node).await;
    assert_eq!(processes_with("theirs").len(), 1, "it runs on");
    restart_after(&mut node, |_| std::fs::rename(&aside, &socket).expect("a socket")).await;
    theirs.is_whole(&node).await;
    ours.is_whole(&node).await;
}
