//! A pod's supervisor is killed: the pod goes with it, in view of everybody, and nothing else does.

use cricket::proto::cri;

use crate::node::{Node, container, eventually, eventually_async, parent_of, pod, processes_with};

/// A pod with one container that waits; its ids.
async fn waiting_pod(node: &Node, name: &str) -> (String, String) {
    let config = pod(node, name);
    let pod = node.run_pod(&config).await;
    let container = node.start_container(&pod, container("main", &["demo", "sleep", "inf", name]), &config).await;
    (pod, container)
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().expect("a process id")).expect("not 0");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a process of this user");
}

#[tokio::test]
async fn a_killed_supervisor_takes_its_pod_with_it_and_nothing_else() {
    let node = Node::start().await;
    node.load_demo().await;
    let (doomed_pod, doomed) = waiting_pod(&node, "doomed-pod").await;
    let (other_pod, other) = waiting_pod(&node, "other-pod").await;
    let process = eventually("its process is there", || processes_with("doomed-pod").first().copied()).await;

    kill(parent_of(process).expect("a supervisor"));
    eventually_async("the pod is not ready", async || {
        (node.pod_status(&doomed_pod).await.state() == cri::PodSandboxState::SandboxNotready).then_some(())
    })
    .await;
    let status = node.exit_of(&doomed).await;
    assert!(!status.reason.is_empty() && status.exit_code != 0, "{status:?}");
    eventually("its process is gone", || processes_with("doomed-pod").is_empty().then_some(())).await;

    assert_eq!(node.pod_status(&other_pod).await.state(), cri::PodSandboxState::SandboxReady);
    assert_eq!(node.exec(&other, &["demo", "echo", "fine"], 10).await.expect("ExecSync").stdout, b"fine\n");
    node.remove_pod(&doomed_pod).await;
    node.remove_pod(&other_pod).await;
    node.stop_and_account().await;
}
