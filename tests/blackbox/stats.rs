//! Statistics are true: what a container burns, holds and writes is what is told, by the calls and by Kubernetes'
//! command line. Limits can be changed while it runs.

use cricket::proto::cri;
use serde_json::Value;

use crate::node::{Node, cgroups, container, eventually, eventually_async, log_lines, pod, succeed, text};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// What the container keeps in a variable of its shell, and what it writes into its root.
const HELD_BYTES: u64 = 40_000_000;
const WRITTEN_BYTES: u64 = 3_000_000;
/// The kernel counts a process's time in hundredths of a second.
const TICK_NANOSECONDS: u64 = 10_000_000;
/// What those may take who make a container, where the processor is emulated.
const MAKERS_NANOSECONDS: u64 = 500_000_000;
/// Over so much the rate is measured, on a machine that is busy.
const BURN_NANOSECONDS: u64 = 1_000_000_000;

fn of_busybox(name: &str, script: &str) -> cri::ContainerConfig {
    // A first process does not die of a signal that it has no handler for.
    let mut config = container(name, &["sh", "-c", &format!("trap exit TERM; {script}")]);
    config.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
    config
}

fn busy(name: &str) -> cri::ContainerConfig {
    let script = format!(
        "head -c {WRITTEN_BYTES} /dev/zero >/big; held=$(head -c {HELD_BYTES} /dev/zero | tr '\\0' x); \
         echo holding; while :; do :; done"
    );
    of_busybox(name, &script)
}

async fn stats(node: &Node, id: &str) -> cri::ContainerStats {
    let request = cri::ContainerStatsRequest { container_id: id.to_owned() };
    node.runtime().await.container_stats(request).await.expect("ContainerStats").into_inner().stats.expect("stats")
}

fn used(stats: &cri::ContainerStats) -> u64 {
    stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).expect("processor time").value
}

/// The container's first process, as the kernel tells it to anybody: its time and that of children it waited for.
fn ticks_of(pid: &str) -> u64 {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let fields = line.rsplit(')').next().expect("a name").split_ascii_whitespace();
    fields.skip(11).take(4).map(|field| field.parse::<u64>().expect("a number")).sum()
}

fn json(node: &Node, arguments: &[&str]) -> Value {
    serde_json::from_str(&text(&succeed(&mut node.crictl(arguments)).stdout)).expect("JSON")
}

#[tokio::test]
async fn what_a_container_burns_holds_and_writes_is_told() {
    let node = Node::start().await;
    node.load("busybox");
    let config = {
        let mut config = pod(&node, "busy");
        let options = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        options.and_then(|o| o.namespace_options.as_mut()).expect("options").network = cri::NamespaceMode::Pod.into();
        config
    };
    let pod_id = node.run_pod(&config).await;
    let id = node.start_container(&pod_id, busy("burner"), &config).await;
    let idle_id = node.start_container(&pod_id, of_busybox("idler", "sleep 600 & wait"), &config).await;
    let log = node.log_of("busy", "burner");
    eventually("it holds its memory", || (log.exists() && !log_lines(&log).is_empty()).then_some(())).await;

    assert_processor(&node, &id, &idle_id).await;
    let told = stats(&node, &id).await;
    let memory = told.memory.expect("memory");
    for (what, value) in [("working set", &memory.working_set_bytes), ("resident", &memory.rss_bytes)] {
        let value = value.expect(what).value;
        assert!((HELD_BYTES..4 * HELD_BYTES).contains(&value), "{what}: {value}");
    }
    let layer = told.writable_layer.expect("a layer");
    let written = layer.used_bytes.expect("bytes").value;
    assert!((WRITTEN_BYTES..2 * WRITTEN_BYTES).contains(&written) && layer.timestamp > 0, "{written}");
    assert!(layer.inodes_used.expect("inodes").value >= 2);

    assert_pod(&node, &pod_id).await;
    assert_lists(&node, &pod_id, &id, &idle_id).await;
    assert_command_line(&node, &pod_id, &id);
    node.stop_and_account().await;
}

/// What is told lies between two looks of our own, and the rate is that of a burner.
async fn assert_processor(node: &Node, id: &str, idle_id: &str) {
    let pid = json(node, &["inspect", id])["info"]["pid"].to_string();
    let first = used(&stats(node, id).await);
    eventually_async("it burns a second", async || {
        (used(&stats(node, id).await) >= first + BURN_NANOSECONDS).then_some(())
    })
    .await;
    let before = ticks_of(&pid) * TICK_NANOSECONDS;
    let later = eventually_async("a look of after ours", async || {
        let told = stats(node, id).await;
        (used(&told) >= before).then_some(told)
    })
    .await;
    let after = ticks_of(&pid) * TICK_NANOSECONDS;
    // In a cgroup the processes that made the first one count too.
    let makers = if cgroups::base().is_some() { MAKERS_NANOSECONDS } else { 0 };
    assert!(used(&later) <= after + 2 * TICK_NANOSECONDS + makers, "{} of {after}", used(&later));
    let rate = later.cpu.and_then(|cpu| cpu.usage_nano_cores).expect("a rate").value;
    assert!((50_000_000..1_500_000_000).contains(&rate), "{rate} of a burner");
    assert!(used(&stats(node, idle_id).await) < BURN_NANOSECONDS, "the idle one burns nothing");
}

async fn assert_pod(node: &Node, pod_id: &str) {
    let look = async || {
        let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod_id.to_owned() };
        let answer = node.runtime().await.pod_sandbox_stats(request).await.expect("PodSandboxStats");
        answer.into_inner().stats.and_then(|stats| stats.linux).expect("stats")
    };
    let told = look().await;
    assert_eq!(told.containers.len(), 2);
    assert!(told.memory.and_then(|m| m.working_set_bytes).expect("memory").value >= HELD_BYTES);
    let count = told.process.and_then(|p| p.process_count).expect("processes").value;
    assert!((3..10).contains(&count), "{count} processes: the supervisor and two containers");
    eventually_async("the pod has sent something", async || {
        let network = look().await.network.expect("a network");
        let interface = network.default_interface.expect("an interface");
        assert_eq!(interface.name, "eth0");
        (interface.tx_bytes.expect("bytes").value > 0).then_some(())
    })
    .await;
}

async fn assert_lists(node: &Node, pod_id: &str, id: &str, idle_id: &str) {
    let mut runtime = node.runtime().await;
    let filter = |filter: cri::ContainerStatsFilter| cri::ListContainerStatsRequest { filter: Some(filter) };
    let ids = |stats: Vec<cri::ContainerStats>| {
        let mut ids: Vec<_> = stats.into_iter().filter_map(|s| Some(s.attributes?.id)).collect();
        ids.sort();
        ids
    };
    let mut both = vec![id.to_owned(), idle_id.to_owned()];
    both.sort();
    let of_pod = filter(cri::ContainerStatsFilter { pod_sandbox_id: pod_id.to_owned(), ..Default::default() });
    let listed = runtime.list_container_stats(of_pod).await.expect("ListContainerStats").into_inner().stats;
    assert_eq!(ids(listed), both);
    let one = filter(cri::ContainerStatsFilter { id: id.to_owned(), ..Default::default() });
    let listed = runtime.list_container_stats(one).await.expect("ListContainerStats").into_inner().stats;
    assert_eq!(ids(listed), [id]);
    let mut stream = runtime.stream_container_stats(cri::StreamContainerStatsRequest::default()).await;
    let stream = stream.as_mut().expect("StreamContainerStats").get_mut();
    let mut streamed = Vec::new();
    while let Some(message) = stream.message().await.expect("a message") {
        streamed.extend(message.container_stats);
    }
    assert_eq!(ids(streamed), both);
}

fn assert_command_line(node: &Node, pod_id: &str, id: &str) {
    let shown = json(node, &["stats", "-o", "json", id]);
    assert_eq!(shown["stats"][0]["attributes"]["id"], id);
    assert!(shown["stats"][0]["cpu"]["usageCoreNanoSeconds"]["value"].is_string());
    let shown = json(node, &["statsp", "-o", "json"]);
    assert_eq!(shown["stats"][0]["attributes"]["id"], pod_id);
    let described = json(node, &["metricdescs"]);
    let names: Vec<&str> =
        described["descriptors"].as_array().expect("a list").iter().filter_map(|d| d["name"].as_str()).collect();
    assert!(names.len() >= 56, "{}", names.len());
    let metrics = json(node, &["metricsp"]);
    let of_pod = &metrics["podMetrics"][0];
    assert_eq!(of_pod["podSandboxId"], pod_id);
    let containers = of_pod["containerMetrics"].as_array().expect("a list");
    let told = containers.iter().flat_map(|c| c["metrics"].as_array().expect("a list"));
    let told: Vec<&str> = told.filter_map(|metric| metric["name"].as_str()).collect();
    assert!(told.iter().all(|name| names.contains(name)), "each is described");
    for name in ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_processes"] {
        assert!(told.contains(&name), "{name}");
    }
}

#[tokio::test]
async fn limits_of_a_running_container_are_changed_recorded_and_what_is_not_enforced_is_told() {
    let mut node = Node::start().await;
    node.load_demo().await;
    let config = pod(&node, "resized");
    let pod_id = node.run_pod(&config).await;
    let mut sleeper = container("sleeper", &["sleep", "600"]);
    let asked = cri::LinuxContainerResources { cpu_shares: 512, memory_limit_in_bytes: 64 << 20, ..Default::default() };
    sleeper.linux.get_or_insert_default().resources = Some(asked);
    let id = node.start_container(&pod_id, sleeper, &config).await;

    succeed(&mut node.crictl(["update", "--memory", &(96 << 20).to_string(), &id]));
    assert_resized(&node, &id).await;
    let odd = cri::LinuxContainerResources {
        unified: [("../../x.y".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    let request =
        cri::UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(odd), ..Default::default() };
    let refused = node.runtime().await.update_container_resources(request).await.expect_err("no such limit");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let request = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod_id,
        overhead: None,
        resources: Some(cri::LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() }),
    };
    node.runtime().await.update_pod_sandbox_resources(request).await.expect("UpdatePodSandboxResources");

    node.kill_daemon();
    node.serve();
    node.wait_until_ready().await;
    assert_resized(&node, &id).await;
    let request = cri::StopContainerRequest { container_id: id.clone(), timeout: 0 };
    node.runtime().await.stop_container(request).await.expect("StopContainer");
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id,
        linux: Some(cri::LinuxContainerResources { cpu_shares: 2, ..Default::default() }),
        ..Default::default()
    };
    let refused = node.runtime().await.update_container_resources(request).await.expect_err("it has exited");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    node.stop_and_account().await;
}

async fn assert_resized(node: &Node, id: &str) {
    let status = node.container_status(id).await;
    let linux = status.resources.and_then(|resources| resources.linux).expect("resources");
    assert_eq!((linux.memory_limit_in_bytes, linux.cpu_shares), (96 << 20, 512));
    let info = &json(node, &["inspect", id])["info"];
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !controllers.split_whitespace().any(|controller| controller == "memory") {
        let told = info["notEnforced"].to_string();
        assert!(told.contains("memory limit"), "nothing is dropped in silence: {info}");
    }
}
