//! Pods on networks of CNI plugins, as an ordinary user: Debian's bridge, and plugins that nobody should install.

use std::path::{Path, PathBuf};

use cricket::proto::cri;

use crate::node::{Node, eventually_async, succeed, text};
use crate::pod_network::{addresses, assert_reached, networked, run, start_sleeper};

/// Debian's plugins, with their state where they have it by default.
pub const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"debian","plugins":[
    {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,
     "ipam":{"type":"host-local","ranges":[[{"subnet":"10.94.0.0/24"}],[{"subnet":"fd94::/64"}]],
             "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

const HOSTILE: &str = r#"{"cniVersion":"1.0.0","name":"hostile","plugins":[{"type":"hostile"}]}"#;

pub fn configure(node: &Node, list: &str) {
    let directory = node.dir.join("net.d");
    std::fs::create_dir_all(&directory).expect("a directory of ours");
    std::fs::write(directory.join("10-test.conflist"), list).expect("a file of ours");
}

fn hostile_plugin(node: &Node, body: &str) {
    use std::os::unix::fs::PermissionsExt;
    let directory = node.dir.join("plugins");
    std::fs::create_dir_all(&directory).expect("a directory of ours");
    let path = directory.join("hostile");
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("a file of ours");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
}

/// Files below a directory whose name begins so.
fn files_named(directory: &Path, beginning: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let below = entries.flatten().flat_map(|entry| match entry.path().is_dir() {
        true => files_named(&entry.path(), beginning),
        false => vec![entry.path()],
    });
    below.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning))).collect()
}

/// Leases, kept results and pods' interfaces.
fn left(node: &Node) -> String {
    let kept = node.root().join("cni");
    let attachments = std::fs::read_dir(&kept).into_iter().flatten().flatten().map(|entry| entry.path());
    let attachments = attachments.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let leases = ["10.94.", "fd94"].into_iter().flat_map(|beginning| files_named(&kept, beginning));
    let files: Vec<_> = attachments.chain(leases).map(|path| path.display().to_string()).collect();
    let links = text(&succeed(&mut node.cricket(["enter", "--", "ip", "-o", "link", "show", "type", "veth"])).stdout);
    format!("{}{links}", files.join("\n"))
}

pub async fn network_missing(node: &Node) -> Option<String> {
    let status = node.runtime().await.status(cri::StatusRequest::default()).await.expect("Status").into_inner();
    let conditions = status.status.expect("a status").conditions;
    let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").expect("a condition");
    (!network.status).then_some(network.message)
}

#[tokio::test]
async fn pods_on_debians_bridge_reach_each_other_and_leave_no_lease_interface_or_result() {
    let mut node = Node::prepare().await;
    configure(&node, BRIDGE);
    node = node.begin().await;
    assert_eq!(network_missing(&node).await, None);
    node.load("busybox");
    let ((a, of_a), (b, of_b)) = (run(&node, "a").await, run(&node, "b").await);
    assert!(of_a[0].starts_with("10.94.0.") && of_a[1].starts_with("fd94:"), "{of_a:?}");
    let (in_a, in_b) = (start_sleeper(&node, &a, "a").await, start_sleeper(&node, &b, "b").await);
    for address in &of_b {
        assert_reached(&node, &in_a, address).await;
    }
    assert_reached(&node, &in_b, &of_a[0]).await;

    let there = left(&node);
    assert!(there.contains("/10.94.0.") && there.contains(".json") && there.contains("veth"), "{there}");

    // One is removed by a daemon that did not make it, the other when its network is configured no more.
    node.kill_daemon();
    node.serve();
    node.wait_until_ready().await;
    assert_eq!(addresses(&node, &a).await, of_a);
    node.remove_pod(&a).await;
    std::fs::remove_file(node.dir.join("net.d/10-test.conflist")).expect("it was there");
    let (c, of_c) = run(&node, "c").await;
    assert!(!of_c[0].starts_with("10.94."), "without a configuration the network is built in: {of_c:?}");
    node.remove_pod(&b).await;
    node.remove_pod(&c).await;
    assert_eq!(left(&node), "");
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_pod_of_a_hostile_plugin_is_told_why_and_rolled_back_and_the_network_is_ready_when_it_is_mended() {
    let mut node = Node::prepare().await;
    hostile_plugin(&node, "[ \"$CNI_COMMAND\" = ADD ] || exit 0; sleep 1000");
    configure(&node, HOSTILE);
    node = node.begin().await;
    let request = cri::RunPodSandboxRequest { config: Some(networked(&node, "a")), ..Default::default() };
    for (body, expected) in [
        ("[ \"$CNI_COMMAND\" = ADD ] || exit 0; sleep 1000", "did not end within"),
        ("[ \"$CNI_COMMAND\" = ADD ] || exit 0; cat /dev/zero", "printed more than"),
        ("echo '{\"code\":7,\"msg\":\"no luck\",\"details\":\"none\"}'", "no luck: none (code 7)"),
    ] {
        hostile_plugin(&node, body);
        let refused = node.runtime().await.run_pod_sandbox(request.clone()).await.expect_err("it is not connected");
        assert!(refused.message().contains(expected), "{}", refused.message());
        let pods = node.runtime().await.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
        assert!(pods.expect("ListPodSandbox").into_inner().items.is_empty());
    }
    configure(&node, "{");
    let missing = network_missing(&node).await.expect("not ready");
    assert!(missing.contains("10-test.conflist"), "{missing}");
    configure(&node, BRIDGE);
    eventually_async("the network is ready", async || network_missing(&node).await.is_none().then_some(())).await;
    let (pod, addresses) = run(&node, "a").await;
    assert!(addresses[0].starts_with("10.94."), "{addresses:?}");
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}

/// tuning keeps what it changed below /run/cni, kindnet's configuration its addresses in /run/cni-ipam-state: neither
/// is an ordinary user's.
#[tokio::test]
async fn plugins_that_keep_something_below_run_keep_it_with_the_node() {
    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"kindnet","plugins":[
        {"type":"ptp","ipam":{"type":"host-local","dataDir":"/run/cni-ipam-state","ranges":[[{"subnet":"10.94.0.0/24"}]],
         "routes":[{"dst":"0.0.0.0/0"}]}},
        {"type":"tuning","mtu":1300}]}"#;
    let mut node = Node::prepare().await;
    configure(&node, LIST);
    node = node.begin().await;
    node.load("busybox");
    let (pod, addresses) = run(&node, "a").await;
    assert!(addresses[0].starts_with("10.94.0."), "{addresses:?}");
    let inside = start_sleeper(&node, &pod, "a").await;
    let link = node.exec(&inside, &["ip", "link", "show", "eth0"], 20).await.expect("ExecSync");
    assert!(text(&link.stdout).contains("mtu 1300"), "{link:?}");
    assert!(left(&node).contains("/cni-ipam-state/"), "{}", left(&node));
    node.remove_pod(&pod).await;
    assert_eq!(left(&node), "");
    assert!(!Path::new("/run/cni-ipam-state").exists() || rustix::process::geteuid().is_root());
    node.stop_and_account().await;
}
