//! What a container is given and what can be done to it while it runs.

use std::os::unix::fs::PermissionsExt;

use cricket::proto::cri;
use tonic::Code;

use crate::node::{Node, container, eventually, log_lines, pod, succeed};

/// Runs one container to its end and answers its status and what it wrote.
async fn run(node: &Node, name: &str, config: cri::ContainerConfig) -> (cri::ContainerStatus, Vec<String>) {
    let pod_config = pod(node, name);
    let pod = node.run_pod(&pod_config).await;
    let id = node.start_container(&pod, config, &pod_config).await;
    let status = node.exit_of(&id).await;
    let lines = log_lines(&node.log_of(name, "main")).into_iter().map(|line| line.content).collect();
    node.remove_pod(&pod).await;
    (status, lines)
}

fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    let linux = config.linux.as_mut().expect("container() sets it");
    linux.security_context.as_mut().expect("container() sets it")
}

/// Environment variables of a container from the demo image.
fn variable(key: &str, value: &str) -> cri::KeyValue {
    cri::KeyValue { key: key.to_owned(), value: value.into() }
}

#[tokio::test]
async fn a_container_gets_what_its_configuration_says() {
    let node = Node::start().await;
    node.load_demo().await;

    let mut config = container("main", &["demo", "env"]);
    config.envs = vec![variable("COLOUR", "green")];
    let (status, lines) = run(&node, "environment", config).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    assert!(lines.iter().any(|line| line == "COLOUR=green"), "{lines:?}");
    assert!(lines.iter().any(|line| line == "PATH=/bin"), "the image's: {lines:?}");

    let mut config = container("main", &["demo", "id"]);
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
    security(&mut config).run_as_group = Some(cri::Int64Value { value: 3000 });
    security(&mut config).supplemental_groups = vec![50000];
    let (_, lines) = run(&node, "identity", config).await;
    assert!(lines[0].starts_with("uid=1000 gid=3000 groups=") && lines[0].contains("50000"), "{lines:?}");

    let mut config = container("main", &["demo", "cat", "/proc/self/status"]);
    security(&mut config).no_new_privs = true;
    security(&mut config).capabilities =
        Some(cri::Capability { drop_capabilities: vec!["ALL".to_owned()], ..Default::default() });
    security(&mut config).seccomp = Some(cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::RuntimeDefault.into(),
        ..Default::default()
    });
    let (_, lines) = run(&node, "confined", config).await;
    for expected in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:?}");
    }

    let (_, lines) = run(&node, "unconfined", container("main", &["demo", "cat", "/proc/self/status"])).await;
    assert!(lines.iter().any(|line| line == "Seccomp:\t0"), "{lines:?}");

    let mut config = container("main", &["demo", "write", "/tmp/file", "text"]);
    security(&mut config).readonly_rootfs = true;
    let (status, _) = run(&node, "read-only", config).await;
    assert_eq!(status.exit_code, 1, "a read-only root is not written to");
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_mounted_directory_is_seen_and_kept_read_only() {
    let node = Node::start().await;
    node.load_demo().await;
    let volume = node.dir.join("volume");
    std::fs::create_dir(&volume).expect("a directory of ours");
    std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o777)).expect("ours");
    std::fs::write(volume.join("greeting"), "from outside\n").expect("a file of ours");
    let mount = |readonly| cri::Mount {
        container_path: "/volume".to_owned(),
        host_path: volume.display().to_string(),
        readonly,
        ..Default::default()
    };

    let mut config = container("main", &["demo", "cat", "/volume/greeting"]);
    config.mounts = vec![mount(true)];
    assert_eq!(run(&node, "reader", config).await.1, ["from outside"]);
    let mut config = container("main", &["demo", "write", "/volume/answer", "from", "inside"]);
    config.mounts = vec![mount(true)];
    assert_eq!(run(&node, "barred", config).await.0.exit_code, 1);
    let mut config = container("main", &["demo", "write", "/volume/answer", "from", "inside"]);
    config.mounts = vec![mount(false)];
    assert_eq!(run(&node, "writer", config).await.0.exit_code, 0);
    assert_eq!(std::fs::read_to_string(volume.join("answer")).expect("written"), "from inside\n");
    node.stop_and_account().await;
}

#[tokio::test]
async fn exec_brings_back_output_and_status_and_ends_at_its_deadline() {
    let node = Node::start().await;
    node.load_demo().await;
    let config = pod(&node, "exec");
    let pod = node.run_pod(&config).await;
    let id = node.start_container(&pod, container("main", &["demo", "sleep", "inf"]), &config).await;

    assert_eq!(node.exec(&id, &["demo", "echo", "a", "b"], 10).await.expect("ExecSync").stdout, b"a b\n");
    let answer = node.exec(&id, &["demo", "no-such-command"], 10).await.expect("ExecSync");
    assert!(answer.exit_code == 127 && answer.stdout.is_empty() && !answer.stderr.is_empty(), "{answer:?}");
    let late = node.exec(&id, &["demo", "sleep", "3600", "late-exec"], 1).await.expect_err("it is too late");
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    eventually("the late process is dead", || crate::node::processes_with("late-exec").is_empty().then_some(())).await;
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_log_is_split_tagged_and_rotated() {
    const LINE_BYTES: usize = 40_000;
    /// Where CRI's clients expect long lines to be cut.
    const PIECE_BYTES: usize = 16 * 1024;
    let node = Node::start().await;
    node.load_demo().await;
    let (_, pieces) = run(&node, "long", container("main", &["demo", "echo", &"x".repeat(LINE_BYTES)])).await;
    let lengths: Vec<_> = pieces.iter().map(String::len).collect();
    assert_eq!(lengths, [PIECE_BYTES, PIECE_BYTES, LINE_BYTES - 2 * PIECE_BYTES]);
    let tags: Vec<_> = log_lines(&node.log_of("long", "main")).iter().map(|line| line.whole).collect();
    assert_eq!(tags, [false, false, true]);

    let config = pod(&node, "rotated");
    let pod = node.run_pod(&config).await;
    let id = node.start_container(&pod, container("main", &["demo", "lines", "0", "5"]), &config).await;
    let log = node.log_of("rotated", "main");
    eventually("it writes", || (log.exists() && log_lines(&log).len() > 10).then_some(())).await;
    let old = log.with_extension("log.old");
    std::fs::rename(&log, &old).expect("a file of ours");
    let request = cri::ReopenContainerLogRequest { container_id: id };
    node.runtime().await.reopen_container_log(request).await.expect("ReopenContainerLog");
    assert!(log.exists(), "the new file is there when the call answers");
    eventually("it writes on", || (log_lines(&log).len() > 10).then_some(())).await;
    node.remove_pod(&pod).await;
    let mut lines = log_lines(&old);
    lines.extend(log_lines(&log));
    assert!((1..).zip(&lines).all(|(number, line)| line.content == format!("line {number}")), "none lost, none twice");
    node.stop_and_account().await;
}

#[tokio::test]
async fn stopping_gives_a_container_its_time() {
    let node = Node::start().await;
    node.load("busybox");
    let config = pod(&node, "stopping");
    let pod = node.run_pod(&config).await;
    let image = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
    for (name, script, timeout, code) in [
        ("polite", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done", 20, 3),
        ("stubborn", "trap '' TERM; echo ready; while :; do sleep 0.05; done", 1, 137),
        ("hurried", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done", 0, 137),
    ] {
        let mut request = container(name, &["sh", "-c", script]);
        request.image = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
        let id = node.start_container(&pod, request, &config).await;
        let log = node.log_of("stopping", name);
        eventually("its trap is set", || (log.exists() && !log_lines(&log).is_empty()).then_some(())).await;
        let stop = cri::StopContainerRequest { container_id: id.clone(), timeout };
        node.runtime().await.stop_container(stop).await.expect("StopContainer");
        let status = node.container_status(&id).await;
        assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, code), "{name}");
    }
    node.remove_pod(&pod).await;
    succeed(node.cricket(["image", "remove"]).arg(image));
    node.stop_and_account().await;
}

#[tokio::test]
async fn the_same_pod_asked_for_twice_at_once_is_one_pod() {
    let node = Node::start().await;
    let config = pod(&node, "twin");
    let (one, other) = tokio::join!(node.run_pod(&config), node.run_pod(&config));
    assert_eq!(one, other);
    let again = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let refused = node.runtime().await.run_pod_sandbox(again).await.expect_err("it was answered before");
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    node.remove_pod(&one).await;
    let new = node.run_pod(&config).await;
    assert_ne!(new, one, "removing frees the name");
    node.remove_pod(&new).await;
    node.stop_and_account().await;
}
