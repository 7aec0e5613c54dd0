//! A daemon of another release takes over what one left: the pods, their supervisors and ports, the images, the node.
//! And back again. `scripts/upgrade` builds the other release and runs this; elsewhere it is skipped.

use std::path::PathBuf;

use cricket::proto::cri;

use crate::daemon_killed::assert_whole;
use crate::host_ports::{echo_through, echoed, free_port, publish, start};
use crate::node::{DEMO, LogLine, Node, container, eventually, log_lines, pod, processes_with};

/// The program of the other release.
const VARIABLE: &str = "CRICKET_UPGRADE_FROM";
/// How many more lines a log has to get at each stage.
const LINES: usize = 20;
const EXIT_CODE: i32 = 7;

/// Pods of one release, a kind each.
struct Pods {
    /// Lines without end, in a PID namespace of the pod.
    writer: (String, String),
    process: u32,
    /// One container has exited.
    exited: (String, String),
    /// One container is made and not started.
    created: (String, String),
    /// With a network of its own and a host port.
    web: String,
    port: u16,
    connection: std::net::TcpStream,
    name: &'static str,
    /// Lines of logs that were renamed.
    earlier: Vec<LogLine>,
}

fn writer_of(node: &Node, name: &str) -> cri::PodSandboxConfig {
    let mut config = pod(node, name);
    let linux = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    linux.namespace_options.get_or_insert_default().pid = cri::NamespaceMode::Pod.into();
    config
}

fn lines(name: &str, marker: &str) -> cri::ContainerConfig {
    let mut config = container(name, &["demo", "lines", "0", "10", marker]);
    let linux = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    linux.namespace_options.get_or_insert_default().pid = cri::NamespaceMode::Pod.into();
    config
}

impl Pods {
    async fn make(node: &Node, name: &'static str) -> Self {
        let config = writer_of(node, name);
        let id = node.run_pod(&config).await;
        let writer = node.start_container(&id, lines("main", name), &config).await;
        let process = eventually("it runs", || processes_with(name).first().copied()).await;
        let command = ["demo", "exit", &EXIT_CODE.to_string()];
        let exited = node.start_container(&id, container("exited", &command), &config).await;
        assert_eq!(node.exit_of(&exited).await.exit_code, EXIT_CODE);
        let created = node.create_container(&id, container("created", &["demo", "echo", "late"]), &config).await;
        let port = free_port();
        let published = publish(node, &format!("web-of-{name}"), &[(cri::Protocol::Tcp, port, 80)]);
        let web = node.run_pod(&published).await;
        start(node, &web, &published, "echo", "nc -ll -p 80 -e cat").await;
        let connection = echo_through(port).await;
        let of_pod = |container: String| (id.clone(), container);
        let (writer, exited, created) = (of_pod(writer), of_pod(exited), of_pod(created));
        Self { writer, process, exited, created, web, port, connection, name, earlier: Vec::new() }
    }

    async fn more_lines(&self, node: &Node) {
        let log = node.log_of(self.name, "main");
        let so_far = log_lines(&log).len();
        eventually("more lines are written", || (log_lines(&log).len() > so_far + LINES).then_some(())).await;
    }

    /// Nothing was restarted or lost, and the other release's supervisor does what this daemon asks.
    async fn are_whole(&mut self, node: &Node) {
        assert_eq!(processes_with(self.name), [self.process], "{} was not restarted", self.name);
        for pod in [&self.writer.0, &self.web] {
            assert_eq!(node.pod_status(pod).await.state(), cri::PodSandboxState::SandboxReady, "{}", self.name);
        }
        let status = node.container_status(&self.writer.1).await;
        assert_eq!(status.state(), cri::ContainerState::ContainerRunning, "{}", self.name);
        let status = node.container_status(&self.exited.1).await;
        let exit = (status.state(), status.exit_code);
        assert_eq!(exit, (cri::ContainerState::ContainerExited, EXIT_CODE), "{}", self.name);
        let answer = node.exec(&self.writer.1, &["demo", "echo", "fine"], 10).await.expect("ExecSync");
        assert_eq!(answer.stdout, b"fine\n", "{}", self.name);
        assert_eq!(echoed(&mut self.connection, "held"), "held", "a connection over the change");
        assert_eq!(echoed(&mut echo_through(self.port).await, "new"), "new", "a new connection");
        self.more_lines(node).await;
        rotate(node, self).await;
        // A container beside them in the old pod, made and removed by this daemon.
        let config = writer_of(node, self.name);
        let more = node.start_container(&self.writer.0, container("more", &["demo", "exit", "3"]), &config).await;
        assert_eq!(node.exit_of(&more).await.exit_code, 3, "{}", self.name);
        let request = cri::RemoveContainerRequest { container_id: more };
        node.runtime().await.remove_container(request).await.expect("RemoveContainer");
    }

    /// What was made is started, what runs is stopped, everything is removed.
    async fn end(mut self, node: &Node) {
        let request = cri::StartContainerRequest { container_id: self.created.1.clone() };
        node.runtime().await.start_container(request).await.expect("StartContainer");
        assert_eq!(node.exit_of(&self.created.1).await.exit_code, 0, "{}", self.name);
        let request = cri::StopContainerRequest { container_id: self.writer.1.clone(), timeout: 5 };
        node.runtime().await.stop_container(request).await.expect("StopContainer");
        assert!(processes_with(self.name).is_empty(), "{}", self.name);
        for pod in [&self.writer.0, &self.web] {
            node.remove_pod(pod).await;
        }
        let mut buffer = [0; 1];
        let ended = std::io::Read::read(&mut self.connection, &mut buffer).map_or(true, |length| length == 0);
        assert!(ended, "its connections end with the pod");
    }
}

/// As a kubelet does it; the lines before and after are whole.
async fn rotate(node: &Node, pods: &mut Pods) {
    let log = node.log_of(pods.name, "main");
    let old = log.with_extension("log.old");
    std::fs::rename(&log, &old).expect("a file of ours");
    let request = cri::ReopenContainerLogRequest { container_id: pods.writer.1.clone() };
    node.runtime().await.reopen_container_log(request).await.expect("ReopenContainerLog");
    eventually("it is written anew", || (!log_lines(&log).is_empty()).then_some(())).await;
    pods.earlier.extend(log_lines(&old));
    let mut now = log_lines(&log);
    // It is being written.
    now.pop();
    assert_whole(&[pods.earlier.as_slice(), &now].concat());
}

async fn replace(node: &mut Node, binary: Option<&PathBuf>) {
    node.kill_daemon();
    node.use_binary(binary);
    node.serve();
    node.wait_until_ready().await;
}

#[tokio::test]
#[ignore = "needs another release: scripts/upgrade"]
async fn another_release_takes_over_and_gives_back() {
    let other = PathBuf::from(std::env::var_os(VARIABLE).expect("scripts/upgrade names the other release"));
    let mut node = Node::prepare().await;
    node.use_binary(Some(&other));
    let mut node = node.begin().await;
    node.load_demo().await;
    node.load("busybox");
    let mut theirs = Pods::make(&node, "theirs").await;

    replace(&mut node, None).await;
    theirs.are_whole(&node).await;
    let mut ours = Pods::make(&node, "ours").await;
    let images = node.images().await.list_images(cri::ListImagesRequest::default()).await.expect("listed").into_inner();
    assert!(images.images.iter().any(|image| image.repo_tags == [DEMO]), "{images:?}");

    // Somebody goes back to the release of before.
    replace(&mut node, Some(&other)).await;
    theirs.are_whole(&node).await;
    ours.are_whole(&node).await;
    let doomed = Pods::make(&node, "doomed").await;
    doomed.end(&node).await;

    replace(&mut node, None).await;
    theirs.are_whole(&node).await;
    ours.are_whole(&node).await;
    theirs.end(&node).await;
    ours.end(&node).await;
    node.stop_and_account().await;
}
