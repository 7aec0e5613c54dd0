//! Pods have addresses of their own, reach each other by them, and keep them while daemons come and go.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpListener;

use cricket::proto::cri;

use crate::node::{Node, container, patience, pod};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// Five pods fit into it besides the bridge.
const ROOM_FOR_FIVE: &str = "10.93.0.0/29";
/// How often a pod asks another before it gives up.
const PINGS: &str = "2";

/// On a network of its own.
pub fn networked(node: &Node, name: &str) -> cri::PodSandboxConfig {
    let mut config = pod(node, name);
    let options = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    let options = options.and_then(|security| security.namespace_options.as_mut()).expect("a test's pod has options");
    options.network = cri::NamespaceMode::Pod.into();
    config
}

/// All addresses of a pod, the first its primary one.
pub async fn addresses(node: &Node, pod: &str) -> Vec<String> {
    let network = node.pod_status(pod).await.network.expect("a network status");
    std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|other| other.ip)).collect()
}

/// Runs a pod and answers its id and its addresses.
pub async fn run(node: &Node, name: &str) -> (String, Vec<String>) {
    let pod = node.run_pod(&networked(node, name)).await;
    let addresses = addresses(node, &pod).await;
    assert!(addresses.iter().all(|address| address.parse::<std::net::IpAddr>().is_ok()), "{name}: {addresses:?}");
    (pod, addresses)
}

/// A container in a running pod that waits and has ping.
pub async fn start_sleeper(node: &Node, pod: &str, name: &str) -> String {
    let config = networked(node, name);
    let mut sleeper = container("main", &["sleep", "600"]);
    sleeper.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
    let options = sleeper.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).expect("it has options");
    options.capabilities = Some(cri::Capability { add_capabilities: vec!["NET_RAW".to_owned()], ..Default::default() });
    node.start_container(pod, sleeper, &config).await
}

pub async fn assert_reached(node: &Node, from: &str, address: &str) {
    let said = node.exec(from, &["ping", "-c", PINGS, "-W", PINGS, address], 20).await.expect("ExecSync");
    assert_eq!(said.exit_code, 0, "{address}: {}", String::from_utf8_lossy(&said.stdout));
}

async fn name_ranges(node: &Node, pod_cidr: &str) -> Result<(), tonic::Status> {
    let network_config = Some(cri::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
    let request = cri::UpdateRuntimeConfigRequest { runtime_config: Some(cri::RuntimeConfig { network_config }) };
    node.runtime().await.update_runtime_config(request).await.map(drop)
}

#[tokio::test]
async fn pods_reach_each_other_and_keep_their_addresses_when_the_daemon_is_killed() {
    let mut node = Node::start().await;
    node.load("busybox");
    let (a, of_a) = run(&node, "a").await;
    let (b, of_b) = run(&node, "b").await;
    let (in_a, in_b) = (start_sleeper(&node, &a, "a").await, start_sleeper(&node, &b, "b").await);
    assert_reached(&node, &in_a, &of_b[0]).await;
    assert_reached(&node, &in_b, &of_a[0]).await;

    node.kill_daemon();
    node.serve();
    node.wait_until_ready().await;
    assert_eq!((addresses(&node, &a).await, addresses(&node, &b).await), (of_a.clone(), of_b.clone()));
    assert_reached(&node, &in_a, &of_b[0]).await;
    let mut others = Vec::new();
    for name in ["c", "d", "e"] {
        others.push(run(&node, name).await);
    }
    let all: Vec<&String> = others.iter().flat_map(|(_, addresses)| addresses).chain(&of_a).chain(&of_b).collect();
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "an address was given twice: {all:?}");
    for pod in others.iter().map(|(pod, _)| pod).chain([&a, &b]) {
        node.remove_pod(pod).await;
    }
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_removed_pods_address_is_free_and_a_full_range_is_told() {
    let mut node = Node::start().await;
    node.load_demo().await;
    for bad in ["10.93.0.0", "10.93.0.0/33", "10.93.0.0/24,10.94.0.0/24"] {
        let refused = name_ranges(&node, bad).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{bad}");
    }
    name_ranges(&node, ROOM_FOR_FIVE).await.expect("a range");
    // What the kubelet said holds for the next daemon too.
    node.kill_daemon();
    node.serve();
    node.wait_until_ready().await;
    let mut pods = Vec::new();
    let full = loop {
        let config = networked(&node, &format!("pod-{}", pods.len()));
        let request = cri::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        match node.runtime().await.run_pod_sandbox(request).await {
            Ok(answer) => pods.push(answer.into_inner().pod_sandbox_id),
            Err(status) => break status,
        }
    };
    assert_eq!((full.code(), pods.len()), (tonic::Code::ResourceExhausted, 5), "{}", full.message());
    let freed = addresses(&node, &pods[1]).await;
    node.remove_pod(&pods.remove(1)).await;
    let (pod, reused) = run(&node, "after").await;
    assert_eq!(reused, freed);
    pods.push(pod);
    for pod in &pods {
        node.remove_pod(pod).await;
    }
    node.stop_and_account().await;
}

/// Where either driver has the host, when its loopback is to be reached.
const HOST_BEHIND_THE_DRIVER: &str = "10.0.2.2";

/// With this driver alone in the daemon's PATH; pasta goes before slirp4netns.
async fn a_connection_goes_on_over_a_kill_of_the_daemon(driver: &str) {
    let mut node = Node::prepare().await;
    leave_in_path(&mut node, &[driver, "newuidmap", "newgidmap"]);
    std::fs::write(node.config(), "[network]\nhost_loopback = true\n").expect("a configuration");
    let mut node = node.begin().await;
    let record = std::fs::read_to_string(node.dir.join("run/outbound.json")).expect("a record of the way out");
    assert!(record.contains(driver), "{record}");
    node.load("busybox");
    // Outside of the node: in the namespace of whoever runs the test.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let config = networked(&node, "caller");
    let pod = node.run_pod(&config).await;
    let line = format!("until nc {HOST_BEHIND_THE_DRIVER} {port} -e cat; do sleep 0.2; done; sleep 600");
    let mut caller = container("main", &["sh", "-c", &line]);
    caller.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
    node.start_container(&pod, caller, &config).await;
    let accepted = tokio::task::spawn_blocking(move || listener.accept());
    let accepted = tokio::time::timeout(patience(), accepted).await.expect("the pod calls in time");
    let (mut stream, _) = accepted.expect("a thread").expect("a connection");
    stream.set_read_timeout(Some(patience())).expect("a limit");
    let mut echoes = |word: &[u8; 5]| {
        let mut answer = [0; 5];
        stream.write_all(word).and_then(|()| stream.read_exact(&mut answer)).expect("the connection is there");
        assert_eq!(&answer, word);
    };

    echoes(b"first");
    let own = addresses(&node, &pod).await;
    node.kill_daemon();
    echoes(b"alone");
    node.serve();
    node.wait_until_ready().await;
    echoes(b"again");
    let (other, of_other) = run(&node, "other").await;
    assert_eq!(addresses(&node, &pod).await, own);
    assert!(of_other.iter().all(|address| !own.contains(address)), "{own:?} {of_other:?}");
    for pod in [&pod, &other] {
        node.remove_pod(pod).await;
    }
    node.stop_and_account().await;
}

/// Nothing else is in the PATH of what is started for the node.
pub fn leave_in_path(node: &mut Node, names: &[&str]) {
    let programs = node.dir.join("programs");
    std::fs::create_dir(&programs).expect("a directory of ours");
    for name in names {
        std::os::unix::fs::symlink(program_in_path(name), programs.join(name)).expect("a link of ours");
    }
    node.enter = vec!["/usr/bin/env".to_owned(), format!("PATH={}", programs.display())];
}

fn program_in_path(name: &str) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").expect("a PATH");
    let found = std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.exists());
    found.unwrap_or_else(|| panic!("{name} is not installed: scripts/deps test"))
}

#[tokio::test]
async fn a_connection_through_pasta_goes_on_while_the_daemon_is_killed_and_started() {
    a_connection_goes_on_over_a_kill_of_the_daemon("pasta").await;
}

#[tokio::test]
async fn a_connection_through_slirp4netns_goes_on_while_the_daemon_is_killed_and_started() {
    a_connection_goes_on_over_a_kill_of_the_daemon("slirp4netns").await;
}
