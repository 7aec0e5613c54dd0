//! The daemon's end: calls under way are answered, silent clients are not waited for, pods run on; and the pods' end
//! when it is asked for.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cricket::proto::cri;

use crate::node::{Node, container, eventually, fail, pod, processes_with, succeed, text};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// Far below what calls under way may take.
const AT_ONCE: Duration = Duration::from_secs(3);
/// HTTP/2's first words and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn sigterm_waits_for_calls_and_not_for_silent_clients() {
    let mut node = Node::start().await;
    node.load_demo().await;
    let config = pod(&node, "goes-on");
    let pod_id = node.run_pod(&config).await;
    let id = node.start_container(&pod_id, container("main", &["demo", "sleep", "inf", "goes-on"]), &config).await;
    // One that has said nothing, one that speaks HTTP/2 and reads no answer, one that is idle.
    let silent = UnixStream::connect(node.socket()).expect("a client");
    let mut deaf = UnixStream::connect(node.socket()).expect("a client");
    deaf.write_all(PREFACE).expect("written");
    let mut idle = node.runtime().await;
    idle.version(cri::VersionRequest::default()).await.expect("Version");

    let mut busy = node.runtime().await;
    let cmd = ["demo", "exit", "7", "1", "under-way"].map(str::to_owned).to_vec();
    let request = cri::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 10 };
    let call = tokio::spawn(async move { busy.exec_sync(request).await });
    eventually("the command runs", || processes_with("under-way").first().copied()).await;
    let begun = Instant::now();
    node.terminate();
    let answer = call.await.expect("a task").expect("the call is answered").into_inner();
    assert_eq!(answer.exit_code, 7);
    node.wait_for_death().await;
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    drop((silent, deaf, idle));
    assert_eq!(processes_with("goes-on").len(), 1, "pods run on");
    node.serve();
    node.wait_until_ready().await;
    assert_eq!(node.container_status(&id).await.state(), cri::ContainerState::ContainerRunning);
    node.stop_and_account().await;
}

#[tokio::test]
async fn stop_pods_ends_each_container_by_its_own_signal() {
    let mut node = Node::start().await;
    node.load("busybox");
    let pod_config = pod(&node, "told");
    let pod_id = node.run_pod(&pod_config).await;
    let script = "trap 'echo by its own signal; exit 0' USR1; trap 'echo by another' TERM; echo ready; while :; do sleep 0.05; done";
    let mut config = container("main", &["sh", "-c", script]);
    config.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
    config.set_stop_signal(cri::Signal::Sigusr1);
    node.start_container(&pod_id, config, &pod_config).await;
    let log = node.log_of("told", "main");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("it traps", || said().contains("ready").then_some(())).await;
    succeed(&mut node.cricket(["stop", "--pods"]));
    assert!(said().contains("by its own signal") && !said().contains("by another"), "{}", said());
    node.wait_for_death().await;
    node.assert_nothing_left().await;
}

#[tokio::test]
async fn a_state_alone_names_the_instance_that_is_stopped() {
    let mut node = Node::start().await;
    let elsewhere = node.dir.join("elsewhere");
    let (_, said) = fail(node.cricket(["--root"]).arg(&elsewhere).arg("stop"));
    assert!(said.contains("is that of the root") && said.contains(&node.root().display().to_string()), "{said}");
    assert!(!node.is_dead());
    let daemon = node.daemon_pid();
    let said = succeed(node.cricket(["stop"]).env_remove("CRICKET_ROOT").env("XDG_DATA_HOME", &elsewhere)).stdout;
    assert!(text(&said).contains(&format!("ended the daemon (pid {daemon})")), "{}", text(&said));
    node.wait_for_death().await;
    node.assert_nothing_left().await;
}
