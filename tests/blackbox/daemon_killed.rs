//! The daemon is killed while pods run: pods outlive it, and it finds them again.

use cricket::proto::cri;

use crate::node::{DEMO, LogLine, Node, container, eventually, log_lines, pod, processes_with};

const PODS: usize = 10;
/// A line every so many milliseconds, from each pod.
const EVERY_MS: &str = "10";
/// How many more lines each pod has to write at each stage.
const LINES: usize = 50;

struct Writer {
    name: String,
    pod: String,
    container: String,
    pid: u32,
    started_at: i64,
}

/// A pod whose container writes numbered lines without end.
async fn writer(node: &Node, number: usize) -> Writer {
    let name = format!("writer-{number}");
    let config = pod(node, &name);
    let pod = node.run_pod(&config).await;
    let command = ["demo", "lines", "0", EVERY_MS, &name];
    let container = node.start_container(&pod, container("main", &command), &config).await;
    let pid = eventually("its process is there", || processes_with(&name).first().copied()).await;
    let started_at = node.container_status(&container).await.started_at;
    Writer { name, pod, container, pid, started_at }
}

async fn lines_more_than(node: &Node, writers: &[Writer], count: usize) {
    for writer in writers {
        let log = node.log_of(&writer.name, "main");
        eventually("more lines are written", || (log.exists() && log_lines(&log).len() > count).then_some(())).await;
    }
}

fn longest(node: &Node, writers: &[Writer]) -> usize {
    writers.iter().map(|writer| log_lines(&node.log_of(&writer.name, "main")).len()).max().unwrap_or(0)
}

#[tokio::test]
async fn killing_the_daemon_restarts_no_container_and_loses_no_line() {
    let mut node = Node::start().await;
    node.load_demo().await;
    let mut writers = Vec::new();
    for number in 0..PODS {
        writers.push(writer(&node, number).await);
    }
    let config = pod(&node, "leaver");
    let leaver_pod = node.run_pod(&config).await;
    let leaver =
        node.start_container(&leaver_pod, container("main", &["demo", "exit", "7", "1", "leaver"]), &config).await;
    lines_more_than(&node, &writers, LINES).await;

    node.kill_daemon();
    eventually("the leaver has left", || processes_with("leaver").is_empty().then_some(())).await;
    let so_far = longest(&node, &writers);
    lines_more_than(&node, &writers, so_far + LINES).await;
    node.serve();
    node.wait_until_ready().await;

    let left = node.exit_of(&leaver).await;
    assert_eq!((left.exit_code, left.reason.as_str()), (7, "Error"));
    for writer in &writers {
        let status = node.container_status(&writer.container).await;
        assert_eq!(status.state(), cri::ContainerState::ContainerRunning, "{}", writer.name);
        assert_eq!(status.started_at, writer.started_at, "{}", writer.name);
        assert_eq!(processes_with(&writer.name), [writer.pid], "{} was not restarted", writer.name);
        assert_eq!(node.pod_status(&writer.pod).await.state(), cri::PodSandboxState::SandboxReady);
    }
    let so_far = longest(&node, &writers);
    lines_more_than(&node, &writers, so_far + LINES).await;
    let said = node.exec(&writers[0].container, &["demo", "echo", "still", "here"], 10).await.expect("ExecSync");
    assert_eq!(said.stdout, b"still here\n");

    for writer in &writers {
        node.remove_pod(&writer.pod).await;
        assert_whole(&log_lines(&node.log_of(&writer.name, "main")));
    }
    node.remove_pod(&leaver_pod).await;
    node.stop_and_account().await;
}

/// Every line from the first one on, each once, whole and in order.
#[track_caller]
pub fn assert_whole(lines: &[LogLine]) {
    for (at, line) in lines.iter().enumerate() {
        let expected = format!("line {}", at + 1);
        assert!(line.whole && line.content == expected, "line {} of the log is {line:?}", at + 1);
    }
}

#[tokio::test]
async fn an_image_and_a_created_container_outlive_the_daemon() {
    let mut node = Node::start().await;
    node.load_demo().await;
    let config = pod(&node, "patient");
    let pod = node.run_pod(&config).await;
    let id = node.create_container(&pod, container("main", &["demo", "echo", "at last"]), &config).await;
    node.kill_daemon();
    node.serve();
    node.wait_until_ready().await;
    assert_eq!(node.container_status(&id).await.state(), cri::ContainerState::ContainerCreated);
    node.runtime()
        .await
        .start_container(cri::StartContainerRequest { container_id: id.clone() })
        .await
        .expect("started");
    assert_eq!(node.exit_of(&id).await.exit_code, 0);
    let images = node.images().await.list_images(cri::ListImagesRequest::default()).await.expect("listed").into_inner();
    assert_eq!(images.images[0].repo_tags, [DEMO]);
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}
