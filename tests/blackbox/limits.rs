//! Limits of cgroup v2, in the kernel's own files and by what happens to those who exceed them; and where cgroups are
//! made.

use std::fs;
use std::path::{Path, PathBuf};

use cricket::proto::cri;
use tonic::Code;

use crate::node::{
    Node, cgroups, container, create_request, eventually, eventually_async, log_lines, pod, succeed, text,
};

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
async fn huge_pages_are_limited_where_the_controller_is_delegated_and_else_the_limit_is_reported() {
    const PAGE_BYTES: u64 = 2 << 20;
    let Some(base) = cgroups::base_or_skip("huge pages") else { return };
    let node = Node::start().await;
    node.load("busybox");
    let limit = cri::HugepageLimit { page_size: "2MB".to_owned(), limit: 3 * PAGE_BYTES };
    let none = cri::HugepageLimit { page_size: "1GB".to_owned(), limit: 0 };
    let wish = cri::LinuxContainerResources { hugepage_limits: vec![limit, none], ..Default::default() };
    let pod_config = pod(&node, "huge");
    let pod = node.run_pod(&pod_config).await;
    let id = node.start_container(&pod, limited(&IDLE, wish), &pod_config).await;
    let cgroup = cgroups::of(&base, &id);
    let delegated = fs::read_to_string(base.join("cgroup.controllers")).expect("a cgroup").contains("hugetlb");
    if delegated {
        assert_eq!(cgroups::read(&cgroup, "hugetlb.2MB.max"), (3 * PAGE_BYTES).to_string());
        let inside = node.exec(&id, &["cat", "/sys/fs/cgroup/hugetlb.2MB.max"], 30).await.expect("ExecSync");
        assert_eq!(text(&inside.stdout).trim_end(), (3 * PAGE_BYTES).to_string());
    } else {
        let told = text(&succeed(&mut node.crictl(["inspect", &id])).stdout).to_owned();
        assert!(told.contains("huge page"), "{told}");
    }
    // Pages of a size that the kernel does not have, and a container that asks for none.
    let unknown = cri::HugepageLimit { page_size: "3MB".to_owned(), limit: PAGE_BYTES };
    let wish = cri::LinuxContainerResources { hugepage_limits: vec![unknown], ..Default::default() };
    let request = create_request(&pod, limited(&IDLE, wish), &pod_config);
    match node.runtime().await.create_container(request).await {
        Err(status) => assert!(delegated && status.message().contains("3MB"), "{status:?}"),
        Ok(_) => assert!(!delegated, "a limit of pages that do not exist is taken"),
    }
    node.remove_pod(&pod).await;
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
    if !rustix::process::geteuid().is_root() {
        let said = succeed(&mut node.cricket(["enter", "--", "cat", "/proc/self/cgroup"]));
        assert_eq!(text(&said.stdout), "0::/node\n", "{}", text(&said.stderr));
    }
    node.remove_pod(&pod).await;
    assert!(!base.join("cricket").join(&pod).exists());
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_pods_limits_are_in_the_kernels_files_from_its_beginning() {
    let Some(base) = cgroups::base_or_skip("whole") else { return };
    let node = Node::start().await;
    let mut config = pod(&node, "whole");
    let linux = config.linux.as_mut().expect("pod() sets it");
    linux.resources = Some(cri::LinuxContainerResources { cpu_quota: 50_000, ..memory(MEMORY_BYTES) });
    linux.overhead = Some(memory(MEMORY_BYTES));
    let pod = node.run_pod(&config).await;
    let cgroup = cgroups::of(&base, &pod);
    assert_eq!(cgroups::read(&cgroup, "memory.max"), (2 * MEMORY_BYTES).to_string());
    assert_eq!(cgroups::read(&cgroup, "cpu.max"), "50000 100000");
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}

#[tokio::test]
async fn limits_of_a_running_container_are_changed_in_the_kernel_and_hold() {
    let Some(base) = cgroups::base_or_skip("resize") else { return };
    let mut node = Node::start().await;
    node.load("busybox");
    let first = cri::LinuxContainerResources { cpu_period: 100_000, cpu_quota: 50_000, ..memory(MEMORY_BYTES) };
    let pod_config = pod(&node, "resized");
    let pod = node.run_pod(&pod_config).await;
    let id = node.start_container(&pod, limited(&IDLE, first), &pod_config).await;
    let cgroup = cgroups::of(&base, &id);
    let change = cri::LinuxContainerResources {
        cpu_quota: 80_000,
        cpu_shares: 2048,
        cpuset_cpus: "0".to_owned(),
        unified: [("pids.max".to_owned(), "100".to_owned())].into(),
        ..memory(MEMORY_BYTES * 8)
    };
    update(&node, &id, change).await.expect("UpdateContainerResources");
    let expected = [
        ("memory.max", (MEMORY_BYTES * 8).to_string()),
        ("memory.swap.max", "0".to_owned()),
        ("cpu.max", "80000 100000".to_owned()),
        ("cpuset.cpus", "0".to_owned()),
        ("cpuset.cpus.effective", "0".to_owned()),
        ("pids.max", "100".to_owned()),
    ];
    let assert_files =
        || expected.iter().for_each(|(file, value)| assert_eq!(&cgroups::read(&cgroup, file), value, "{file}"));
    assert_files();
    let inside = node.exec(&id, &GREEDY, 300).await.expect("ExecSync");
    assert_eq!(inside.exit_code, 0, "there is room for it now: {}", text(&inside.stderr));

    // What the kernel refuses changes nothing.
    let refused = cri::LinuxContainerResources { cpuset_cpus: "4000".to_owned(), ..memory(MEMORY_BYTES * 4) };
    update(&node, &id, refused).await.expect_err("there are not so many processors");
    assert_files();
    node.kill_daemon();
    node.serve();
    node.wait_until_ready().await;
    assert_files();
    let told = node.container_status(&id).await.resources.and_then(|resources| resources.linux).expect("resources");
    assert_eq!((told.cpu_quota, told.memory_limit_in_bytes), (80_000, MEMORY_BYTES * 8));
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}

async fn update(node: &Node, id: &str, change: cri::LinuxContainerResources) -> Result<(), tonic::Status> {
    let request =
        cri::UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(change), ..Default::default() };
    node.runtime().await.update_container_resources(request).await.map(drop)
}

#[tokio::test]
async fn who_may_swap_swaps_instead_of_being_killed() {
    let Some(base) = cgroups::base_or_skip("swap") else { return };
    if fs::read_to_string("/proc/swaps").is_ok_and(|table| table.lines().count() < 2) {
        return eprintln!("swap: skipped: this machine has no swap; that of `scripts/vm` has");
    }
    let node = Node::start().await;
    node.load("busybox");
    let wish = cri::LinuxContainerResources { memory_swap_limit_in_bytes: MEMORY_BYTES * 4, ..memory(MEMORY_BYTES) };
    let pod_config = pod(&node, "swapping");
    let pod = node.run_pod(&pod_config).await;
    // 96 MiB, which stay in a variable.
    let script = "held=$(head -c 96000000 /dev/zero | tr '\\0' x); echo held; sleep 1000";
    let id = node.start_container(&pod, limited(&["sh", "-c", script], wish), &pod_config).await;
    let cgroup = cgroups::of(&base, &id);
    assert_eq!(cgroups::read(&cgroup, "memory.swap.max"), (MEMORY_BYTES * 3).to_string());
    let log = node.log_of("swapping", "main");
    eventually("it holds more than its memory", || (log.exists() && !log_lines(&log).is_empty()).then_some(())).await;
    eventually_async("it swaps, and what is told is what the kernel says", async || {
        let swapped: u64 = cgroups::read(&cgroup, "memory.swap.current").parse().expect("a number");
        let told = stats(&node, &id).await.swap.and_then(|swap| swap.swap_usage_bytes).expect("swap").value;
        (swapped > 0 && told > 0 && told.abs_diff(swapped) <= swapped / 2).then_some(())
    })
    .await;
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}

async fn stats(node: &Node, id: &str) -> cri::ContainerStats {
    let request = cri::ContainerStatsRequest { container_id: id.to_owned() };
    node.runtime().await.container_stats(request).await.expect("ContainerStats").into_inner().stats.expect("stats")
}

/// The number after a key of a flat file.
fn keyed(cgroup: &Path, file: &str, key: &str) -> u64 {
    let text = cgroups::read(cgroup, file);
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {key} in {file}: {text}"))
}

#[tokio::test]
async fn statistics_are_those_of_the_kernels_files() {
    let Some(base) = cgroups::base_or_skip("statistics") else { return };
    let node = Node::start().await;
    node.load("busybox");
    let pod_config = pod(&node, "counted");
    let pod = node.run_pod(&pod_config).await;
    let script = "held=$(head -c 20000000 /dev/zero | tr '\\0' x); sleep 900 & sleep 900 & echo held; wait";
    let id = node.start_container(&pod, limited(&["sh", "-c", script], memory(MEMORY_BYTES * 2)), &pod_config).await;
    let log = node.log_of("counted", "main");
    eventually("it holds its memory", || (log.exists() && !log_lines(&log).is_empty()).then_some(())).await;
    let cgroup = cgroups::of(&base, &id);
    let usage = || keyed(&cgroup, "cpu.stat", "usage_usec") * 1000;
    // What is told lies between a look before and a look after; a told value may be some seconds old.
    let (told, before) = eventually_async("statistics of after our look", async || {
        let before = usage();
        let told = stats(&node, &id).await;
        let used = told.cpu.as_ref()?.usage_core_nano_seconds?.value;
        (used >= before).then_some((told, before))
    })
    .await;
    let used = told.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).expect("processor time").value;
    assert!((before..=usage()).contains(&used), "{used} of {before} to {}", usage());
    let memory = told.memory.expect("memory");
    let page = 1 << 20;
    let near = |told: Option<cri::UInt64Value>, kernel: u64, what: &str| {
        let told = told.unwrap_or_else(|| panic!("{what} is not told")).value;
        assert!(told.abs_diff(kernel) <= page, "{what}: {told} of {kernel}");
    };
    let current: u64 = cgroups::read(&cgroup, "memory.current").parse().expect("a number");
    let inactive = keyed(&cgroup, "memory.stat", "inactive_file");
    near(memory.usage_bytes, current, "usage");
    near(memory.working_set_bytes, current - inactive, "working set");
    near(memory.rss_bytes, keyed(&cgroup, "memory.stat", "anon"), "rss");
    near(memory.available_bytes, (2 * MEMORY_BYTES).unsigned_abs() - (current - inactive), "available");
    let of_pod = succeed(&mut node.crictl(["statsp", "-o", "json", &pod]));
    let of_pod: serde_json::Value = serde_json::from_slice(&of_pod.stdout).expect("JSON");
    let count = &of_pod["stats"][0]["linux"]["process"]["processCount"]["value"];
    let in_pod = cgroups::read(&cgroups::of(&base, &pod), "pids.current");
    assert_eq!(*count, in_pod, "the shell, two that sleep and the supervisor: {of_pod}");
    assert_eq!(cgroups::read(&cgroup, "pids.current"), "3");
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}
