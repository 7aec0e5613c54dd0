//! Which processes a container sees, and how one enters it all the same.

use cricket::proto::cri;

use crate::node::{Node, container, eventually, log_lines, pod};

fn options(config: &mut cri::ContainerConfig, pid: cri::NamespaceMode, target: &str) {
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    let options = security.namespace_options.get_or_insert_default();
    options.pid = pid.into();
    options.target_id = target.to_owned();
}

/// The name of the first process that a container sees.
async fn first_process(node: &Node, id: &str) -> String {
    let answer = node.exec(id, &["demo", "cat", "/proc/1/comm"], 10).await.expect("ExecSync");
    assert_eq!(answer.exit_code, 0, "{answer:?}");
    String::from_utf8_lossy(&answer.stdout).trim().to_owned()
}

#[tokio::test]
async fn a_container_sees_the_processes_of_the_namespace_that_it_asks_for() {
    let node = Node::start().await;
    node.load_demo().await;
    let mut pod_config = pod(&node, "processes");
    let linux = pod_config.linux.get_or_insert_default();
    let of_pod = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
    of_pod.pid = cri::NamespaceMode::Node.into();
    let pod = node.run_pod(&pod_config).await;
    let nodes_first = std::fs::read_to_string("/proc/1/comm").expect("procfs").trim().to_owned();

    let mut ids = Vec::new();
    for (name, pid, target) in [
        ("own", cri::NamespaceMode::Container, None),
        ("nodes", cri::NamespaceMode::Node, None),
        ("targets-own", cri::NamespaceMode::Target, Some(0)),
        ("targets-nodes", cri::NamespaceMode::Target, Some(1)),
    ] {
        let mut config = container(name, &["demo", "sleep", "inf"]);
        let target: Option<&String> = target.map(|number: usize| &ids[number]);
        options(&mut config, pid, target.map_or("", String::as_str));
        let id = node.start_container(&pod, config, &pod_config).await;
        let expected = if name.ends_with("own") { "demo" } else { nodes_first.as_str() };
        assert_eq!(first_process(&node, &id).await, expected, "{name}");
        ids.push(id);
    }
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}

/// Who may trace processes may look through /proc/PID/root: the pod's first process must be worth nothing.
async fn shows_nothing_of_the_node(node: &Node, pod: &str, pod_config: &cri::PodSandboxConfig) {
    let mut config = container("tracer", &["demo", "sleep", "inf"]);
    options(&mut config, cri::NamespaceMode::Pod, "");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    let capabilities = cri::Capability { add_capabilities: vec!["SYS_PTRACE".to_owned()], ..Default::default() };
    security.capabilities = Some(capabilities);
    let id = node.start_container(pod, config, pod_config).await;
    let seen = async |file: &str| node.exec(&id, &["demo", "cat", file], 10).await.expect("ExecSync");
    assert_eq!(seen("/proc/1/comm").await.exit_code, 0);
    assert_ne!(seen("/proc/1/root/etc/passwd").await.exit_code, 0, "the node's files are seen");
    let status = String::from_utf8_lossy(&seen("/proc/1/status").await.stdout).into_owned();
    for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
    let mounts = String::from_utf8_lossy(&seen("/proc/1/mounts").await.stdout).into_owned();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
}

#[tokio::test]
async fn a_pods_containers_share_processes_when_the_pod_does() {
    let node = Node::start().await;
    node.load_demo().await;
    let mut pod_config = pod(&node, "shared");
    let linux = pod_config.linux.get_or_insert_default();
    let of_pod = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
    of_pod.pid = cri::NamespaceMode::Pod.into();
    let pod = node.run_pod(&pod_config).await;
    let mut config = container("main", &["demo", "echo", "ran"]);
    options(&mut config, cri::NamespaceMode::Pod, "");
    node.start_container(&pod, config, &pod_config).await;
    let log = node.log_of("shared", "main");
    eventually("it wrote", || (log.exists() && !log_lines(&log).is_empty()).then_some(())).await;
    let mut config = container("other", &["demo", "sleep", "inf"]);
    options(&mut config, cri::NamespaceMode::Pod, "");
    let id = node.start_container(&pod, config, &pod_config).await;
    assert_ne!(first_process(&node, &id).await, "demo", "the pod's own init is first");
    shows_nothing_of_the_node(&node, &pod, &pod_config).await;
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}
