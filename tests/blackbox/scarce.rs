//! Something runs out: space or inodes where bundles and records are, space for logs, descriptors of the daemon. The
//! call that fails says so, everything else goes on, and it works again when there is some.
//!
//! Small file systems are mounted in a mount namespace of the test's own; the daemon is uid 0 of that user namespace.

use std::os::unix::net::UnixStream;

use cricket::proto::cri;
use tonic::{Code, Status};

use crate::disk_full::Disk;
use crate::node::{Node, container, eventually, eventually_async, pod, processes_with};

/// More clients than the daemon of [`FEW`] descriptors can have.
const CLIENTS: usize = 250;
const FEW: usize = 160;

async fn run(node: &Node, config: &cri::PodSandboxConfig) -> Result<String, Status> {
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    node.runtime().await.run_pod_sandbox(request).await.map(|answer| answer.into_inner().pod_sandbox_id)
}

async fn create(node: &Node, pod: &str, config: &cri::PodSandboxConfig, name: &str) -> Result<String, Status> {
    let request = crate::node::create_request(pod, container(name, &["demo", "sleep", "inf", name]), config);
    node.runtime().await.create_container(request).await.map(|answer| answer.into_inner().container_id)
}

/// The place for pods' records, or for their bundles, is used up by `fill` and freed by `free`.
async fn without_room(below: &str, options: &str, fill: &str, free: &str) {
    let mut node = Node::prepare().await;
    let place = node.dir.join(below);
    let disk = Disk::mount_with(&place, options);
    node.enter = disk.enter();
    let node = node.begin().await;
    node.load_demo().await;
    let old = pod(&node, "old");
    let old_id = node.run_pod(&old).await;
    let main = node.start_container(&old_id, container("main", &["demo", "sleep", "inf", "old"]), &old).await;
    let before = disk.run(LIST, &place);
    disk.run(fill, &place);

    let filled = disk.run(LIST, &place);
    let new = pod(&node, "new");
    for refused in [run(&node, &new).await, create(&node, &old_id, &old, "more").await] {
        let status = refused.expect_err("there is no room");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("No space left") && status.message().contains("pod default/"), "{status}");
    }
    assert_eq!(disk.run(LIST, &place), filled, "what fails leaves nothing");
    // What is there goes on, and can be ended.
    let answer = node.exec(&main, &["demo", "echo", "fine"], 10).await.expect("ExecSync");
    assert_eq!(answer.stdout, b"fine\n");
    let request = cri::StopContainerRequest { container_id: main.clone(), timeout: 10 };
    node.runtime().await.stop_container(request).await.expect("StopContainer");
    assert_eq!(node.container_status(&main).await.state(), cri::ContainerState::ContainerExited);
    let request = cri::RemoveContainerRequest { container_id: main };
    node.runtime().await.remove_container(request).await.expect("RemoveContainer");

    disk.run(free, &place);
    let id = create(&node, &old_id, &old, "more").await.expect("there is room again");
    let request = cri::StartContainerRequest { container_id: id };
    node.runtime().await.start_container(request).await.expect("StartContainer");
    let new_id = run(&node, &new).await.expect("there is room again");
    node.remove_pod(&new_id).await;
    node.remove_pod(&old_id).await;
    let left = disk.run(LIST, &place);
    assert_eq!(left.lines().count(), 1, "{left}\nbefore:\n{before}");
    node.terminate_and_account().await;
}

/// Everything but the marks of answers, which come a moment after these.
const LIST: &str = "find \"$0\" ! -name answered ! -name started | sort";

const FILL: &str =
    "dd if=/dev/zero of=\"$0/ballast\" bs=4k 2>/dev/null; dd if=/dev/zero bs=1 >>\"$0/ballast\" 2>/dev/null; :";

#[tokio::test]
async fn without_space_for_records_a_call_says_so_and_the_rest_goes_on() {
    without_room("root/pods", "size=1m", FILL, "rm \"$0/ballast\"").await;
}

#[tokio::test]
async fn without_space_for_bundles_a_call_says_so_and_the_rest_goes_on() {
    without_room("run/pods", "size=2m", FILL, "rm \"$0/ballast\"").await;
}

#[tokio::test]
async fn without_inodes_a_call_says_so_and_the_rest_goes_on() {
    let fill = "n=0; while mkdir \"$0/ballast-$n\" 2>/dev/null; do n=$((n + 1)); done";
    without_room("run/pods", "size=4m,nr_inodes=200", fill, "rmdir \"$0\"/ballast-*").await;
}

#[tokio::test]
async fn a_full_disk_of_logs_is_told_and_stops_nobody() {
    let mut node = Node::prepare().await;
    let place = node.logs().join("full");
    let disk = Disk::mount_with(&place, "size=256k");
    node.enter = disk.enter();
    let node = node.begin().await;
    node.load_demo().await;
    let config = pod(&node, "full");
    let id = node.run_pod(&config).await;
    disk.run(FILL, &place);
    let talker = node.start_container(&id, container("talker", &["demo", "lines", "0", "1", "talker"]), &config).await;
    let told = eventually_async("its log's trouble is told", async || {
        let status = node.container_status(&talker).await;
        status.message.contains("No space left").then_some(status)
    })
    .await;
    assert_eq!(told.state(), cri::ContainerState::ContainerRunning);
    let answer = node.exec(&talker, &["demo", "echo", "fine"], 10).await.expect("ExecSync");
    assert_eq!(answer.stdout, b"fine\n");
    let other = pod(&node, "other");
    let other_id = node.run_pod(&other).await;
    node.start_container(&other_id, container("main", &["demo", "lines", "3", "1", "other"]), &other).await;
    let log = node.log_of("other", "main");
    let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
    eventually("others log", || (lines() == 3).then_some(())).await;
    disk.run("rm \"$0/ballast\"", &place);
    eventually_async("its log is written again", async || {
        node.container_status(&talker).await.message.is_empty().then_some(())
    })
    .await;
    node.remove_pod(&id).await;
    node.remove_pod(&other_id).await;
    node.terminate_and_account().await;
}

#[tokio::test]
async fn without_descriptors_calls_fail_clearly_and_the_daemon_goes_on() {
    let mut node = Node::prepare().await;
    node.enter = ["sh", "-c", &format!("ulimit -n {FEW} && exec \"$@\""), "sh"].map(str::to_owned).to_vec();
    let node = node.begin().await;
    node.load_demo().await;
    let config = pod(&node, "few");
    let id = node.run_pod(&config).await;
    let main = node.start_container(&id, container("main", &["demo", "sleep", "inf", "few"]), &config).await;
    // Clients that were there before: with the others nobody else gets in.
    let mut runtime = node.runtime().await;
    runtime.version(cri::VersionRequest::default()).await.expect("Version");
    let clients: Vec<_> = (0..CLIENTS).map_while(|_| UnixStream::connect(node.socket()).ok()).collect();
    eventually_async("nothing can be opened", async || {
        let request = cri::RunPodSandboxRequest { config: Some(pod(&node, "more")), ..Default::default() };
        let status = runtime.run_pod_sandbox(request).await.err()?;
        assert!(status.message().contains("Too many open files"), "{status}");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        Some(())
    })
    .await;
    drop(clients);
    let more = eventually_async("it works again", async || run(&node, &pod(&node, "again")).await.ok()).await;
    assert_eq!(processes_with("few").len(), 1);
    let answer = node.exec(&main, &["demo", "echo", "fine"], 10).await.expect("ExecSync");
    assert_eq!(answer.stdout, b"fine\n");
    node.remove_pod(&more).await;
    node.remove_pod(&id).await;
    node.stop_and_account().await;
}

/// Threads and processes of whoever runs this.
fn own_tasks() -> usize {
    use std::os::unix::fs::MetadataExt;
    let own = rustix::process::getuid().as_raw();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    let ours = processes.filter(|path| std::fs::metadata(path).is_ok_and(|metadata| metadata.uid() == own));
    ours.filter_map(|path| std::fs::read_dir(path.join("task")).ok()).map(Iterator::count).sum()
}

#[tokio::test]
async fn without_processes_a_call_says_so_and_the_rest_goes_on() {
    const ROOM: usize = 40;
    let mut node = Node::prepare().await;
    node.enter = vec!["prlimit".to_owned(), format!("--nproc={}", own_tasks() + ROOM)];
    let node = node.begin().await;
    node.load_demo().await;
    let config = pod(&node, "full");
    let id = node.run_pod(&config).await;
    let mut made = Vec::new();
    // None needs less than a process.
    let refused = loop {
        assert!(made.len() < ROOM, "the limit is not in force");
        match create(&node, &id, &config, &format!("c{}", made.len())).await {
            Ok(container) => made.push(container),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("ulimit -u") && refused.message().contains("container c"), "{refused}");
    // What is there is told and can be ended, and makes room.
    let status = node.container_status(&made[0]).await;
    assert_eq!(status.state(), cri::ContainerState::ContainerCreated);
    for container in made.drain(..made.len() / 2) {
        let request = cri::RemoveContainerRequest { container_id: container };
        node.runtime().await.remove_container(request).await.expect("RemoveContainer");
    }
    let again = create(&node, &id, &config, "again").await.expect("there is room");
    let request = cri::StartContainerRequest { container_id: again.clone() };
    node.runtime().await.start_container(request).await.expect("StartContainer");
    let answer = node.exec(&again, &["demo", "echo", "fine"], 10).await.expect("ExecSync");
    assert_eq!(answer.stdout, b"fine\n");
    node.remove_pod(&id).await;
    node.stop_and_account().await;
}
