//! Limits of cgroup v2, in the kernel's own files and by what happens to those who exceed them; and where cgroups are made.

use std::fs;
use std::path::PathBuf;

use cricket::proto::cri;
use tonic::Code;

use crate::node::{Node, cgroups, container, eventually, log_lines, pod, succeed, text};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
const MEMORY_BYTES: i64 = 64 << 20;
/// Takes 256 MiB at once, touches all of it.
const GREEDY: [&str; 5] = ["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"];
const IDLE: [&str; 2] = ["sleep", "1000"];

fn limited(command: &[&str], resources: cri::LinuxContainerResources) -> cri::ContainerConfig {
    let mut config = container("main", command);
    config.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
    config.linux.as_mut().expect("container() sets it").resources = Some(resources);
    config
}

fn memory(limit: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        memory_limit_in_bytes: limit,
        // Of memory and swap together: no swap.
        memory_swap_limit_in_bytes: limit,
        ..Default::default()
    }
}

fn child_of(name: &str, parent: &str, node: &Node) -> cri::PodSandboxConfig {
    let mut config = pod(node, name);
    config.linux.as_mut().expect("pod() sets it").cgroup_parent = parent.to_owned();
    config
}

#[tokio::test]
async fn who_takes_more_memory_than_the_limit_is_killed_and_the_reason_is_told() {
    if cgroups::base_or_skip("memory").is_none() {
        return;
    }
    let node = Node::start().await;
    node.load("busybox");
    let pod_config = pod(&node, "greedy");
    let pod = node.run_pod(&pod_config).await;
    let id = node.start_container(&pod, limited(&GREEDY, memory(MEMORY_BYTES)), &pod_config).await;
    let status = node.exit_of(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    node.remove_pod(&pod).await;

    // The same with room for it.
    let pod_config = self::pod(&node, "modest");
    let pod = node.run_pod(&pod_config).await;
    let id = node.start_container(&pod, limited(&GREEDY, memory(MEMORY_BYTES * 8)), &pod_config).await;
    let status = node.exit_of(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"), "{status:?}");
    node.stop_and_account().await;
}

#[tokio::test]
async fn every_limit_is_in_the_kernels_files_and_seen_from_inside() {
    let Some(base) = cgroups::base_or_skip("files") else { return };
    let node = Node::start().await;
    node.load("busybox");
    let wish = cri::LinuxContainerResources {
        cpu_period: 50_000,
        cpu_quota: 25_000,
        cpu_shares: 512,
        cpuset_cpus: "0".to_owned(),
        unified: [("pids.max".to_owned(), "17".to_owned()), ("memory.oom.group".to_owned(), "1".to_owned())].into(),
        ..memory(MEMORY_BYTES)
    };
    let pod_config = pod(&node, "files");
    let pod = node.run_pod(&pod_config).await;
    let id = node.start_container(&pod, limited(&IDLE, wish), &pod_config).await;
    let cgroup = cgroups::of(&base, &id);
    // The weight is that of 512 shares of 1024 for the 100 of a cgroup without a wish, as the kernel rounds it.
    let weight: u32 = cgroups::read(&cgroup, "cpu.weight").parse().expect("a number");
    assert!((15..=60).contains(&weight), "{weight}");
    let expected = [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("cpu.max", "25000 50000"),
        ("cpuset.cpus", "0"),
        ("pids.max", "17"),
    ];
    for (file, value) in expected {
        assert_eq!(cgroups::read(&cgroup, file), value, "{file} of {}", cgroup.display());
        let inside = node.exec(&id, &["cat", &format!("/sys/fs/cgroup/{file}")], 30).await.expect("ExecSync");
        assert_eq!(text(&inside.stdout).trim_end(), value, "{file} from inside: {}", text(&inside.stderr));
    }
    let inside = node.exec(&id, &["cat", "/proc/self/cgroup"], 30).await.expect("ExecSync");
    assert_eq!(text(&inside.stdout), "0::/\n", "an exec'd process is in the container's cgroup, which is its root");

    // With 17 of them there is no eighteenth.
    let script = "for i in $(seq 20); do sleep 100 & done";
    let inside = node.exec(&id, &["sh", "-c", script], 60).await.expect("ExecSync");
    assert!(inside.exit_code != 0 && text(&inside.stderr).contains("fork"), "{inside:?}");
    assert!(cgroups::read(&cgroup, "pids.current").parse::<u32>().expect("a number") <= 17);
    node.remove_pod(&pod).await;
    assert!(!cgroup.exists());
    node.stop_and_account().await;
}

#[tokio::test]
async fn who_takes_more_processor_time_than_the_quota_is_throttled() {
    let Some(base) = cgroups::base_or_skip("processor") else { return };
    let node = Node::start().await;
    node.load("busybox");
    let wish = cri::LinuxContainerResources { cpu_period: 100_000, cpu_quota: 20_000, ..Default::default() };
    let pod_config = pod(&node, "busy");
    let pod = node.run_pod(&pod_config).await;
    let id = node.start_container(&pod, limited(&["sh", "-c", "while :; do :; done"], wish), &pod_config).await;
    let cgroup = cgroups::of(&base, &id);
    eventually("it is throttled", || {
        let statistics = cgroups::read(&cgroup, "cpu.stat");
        let throttled = statistics.lines().find_map(|line| line.strip_prefix("nr_throttled "))?;
        (throttled.parse::<u64>().ok()? > 3).then_some(())
    })
    .await;
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}

#[tokio::test]
async fn pods_are_made_in_the_cgroup_that_the_kubelet_names_and_its_limits_hold() {
    let Some(base) = cgroups::base_or_skip("parent") else { return };
    let node = Node::start().await;
    node.load("busybox");
    let cases = [
        ("plain", "/kubepods/burstable/pod1", "kubepods/burstable/pod1", "ID"),
        (
            "slices",
            "kubepods-burstable-pod2.slice",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2.slice",
            "cri-cricket-ID.scope",
        ),
    ];
    for (name, parent, directory, leaf) in cases {
        let directory = base.join(directory);
        let pod_config = child_of(name, parent, &node);
        let pod = node.run_pod(&pod_config).await;
        let idle = node.start_container(&pod, limited(&IDLE, memory(MEMORY_BYTES)), &pod_config).await;
        assert_eq!(cgroups::of(&base, &idle), directory.join(leaf.replace("ID", &idle)));
        assert_eq!(cgroups::read(&cgroups::of(&base, &idle), "memory.max"), MEMORY_BYTES.to_string());

        // As a kubelet limits a pod.
        fs::write(directory.join("memory.max"), MEMORY_BYTES.to_string()).expect("delegated to us");
        fs::write(directory.join("memory.swap.max"), "0").expect("delegated to us");
        let mut greedy = limited(&GREEDY, cri::LinuxContainerResources::default());
        greedy.metadata.as_mut().expect("set").name = "greedy".to_owned();
        let greedy = node.start_container(&pod, greedy, &pod_config).await;
        assert_eq!(node.exit_of(&greedy).await.reason, "OOMKilled", "by the pod's limit");
        assert_eq!(node.container_status(&idle).await.state(), cri::ContainerState::ContainerRunning);

        node.remove_pod(&pod).await;
        assert_eq!(cgroups::below(&directory, &[]), Vec::<PathBuf>::new(), "what was made in the kubelet's is gone");
        assert!(directory.is_dir(), "the kubelet's own stays");
        for level in directory.ancestors().take_while(|level| *level != base) {
            fs::remove_dir(level).expect("empty");
        }
    }
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_cgroup_parent_above_the_node_is_refused() {
    let node = Node::start().await;
    for parent in ["/../../x", "/kubepods/../../x", "..", "/"] {
        let config = child_of("outside", parent, &node);
        let request = cri::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let error = node.runtime().await.run_pod_sandbox(request).await.expect_err(parent);
        assert_eq!(error.code(), Code::InvalidArgument, "{parent}: {error}");
        assert!(error.message().contains("cgroup parent"), "{parent}: {error}");
    }
    let answer = node.runtime().await.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.expect("listed");
    assert!(answer.into_inner().items.is_empty());
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_pod_without_a_parent_has_its_cgroup_below_crickets_and_a_log_line_comes_from_it() {
    let Some(base) = cgroups::base_or_skip("own") else { return };
    let node = Node::start().await;
    node.load("busybox");
    let pod_config = pod(&node, "own");
    let pod = node.run_pod(&pod_config).await;
    let config = limited(&["cat", "/proc/self/cgroup"], memory(MEMORY_BYTES));
    let id = node.start_container(&pod, config, &pod_config).await;
    node.exit_of(&id).await;
    assert_eq!(log_lines(&node.log_of("own", "main"))[0].content, "0::/");
    assert_eq!(cgroups::of(&base, &pod), base.join("cricket").join(&pod));
    // Everything but the daemon is in leaves of the node or of the pod.
    let said = succeed(&mut node.cricket(["enter", "--", "cat", "/proc/self/cgroup"]));
    assert_eq!(text(&said.stdout), "0::/node\n", "{}", text(&said.stderr));
    node.remove_pod(&pod).await;
    assert!(!base.join("cricket").join(&pod).exists());
    node.stop_and_account().await;
}
