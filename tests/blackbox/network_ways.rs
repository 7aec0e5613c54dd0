//! Ways into pods that are not on the built-in network: port-forward to the node's own, host ports of CNI's. And what
//! is said where there can be no network.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::process::Stdio;

use cricket::proto::cri;

use crate::cni::{BRIDGE, configure, network_missing};
use crate::host_ports::{assert_datagrams_echoed, echo_datagrams, echo_through, echoed, free_port, publish, start};
use crate::node::{Node, eventually, patience, pod, text};
use crate::pod_network::{assert_reached, leave_in_path, run, start_sleeper};

/// In the node's network namespace, where nobody else listens.
const PORT: u16 = 7070;

/// By which this machine sends packets to others; none where it has no network.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel only looks up the route.
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

#[tokio::test]
async fn port_forward_reaches_a_pod_on_the_nodes_network() {
    let node = Node::start().await;
    node.load("busybox");
    let config = pod(&node, "host");
    let options = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let network = options.and_then(|security| security.namespace_options.as_ref()).map(|options| options.network());
    assert_eq!(network, Some(cri::NamespaceMode::Node));
    let host = node.run_pod(&config).await;
    start(&node, &host, &config, "echo", &format!("nc -ll -p {PORT} -e cat")).await;

    let mut forward = node.crictl(["port-forward", &host, &format!(":{PORT}")]);
    let mut forward = forward.stdout(Stdio::piped()).spawn().expect("crictl");
    // It goes on writing; where nobody reads, it dies of that.
    let mut lines = BufReader::new(forward.stdout.take().expect("its output")).lines();
    let said = lines.next().expect("it says where").expect("a line");
    let address = said.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).expect("an address");
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let mut stream = echo_through(port).await;
    assert_eq!(echoed(&mut stream, "through"), "through");
    forward.kill().expect("killed");
    forward.wait().expect("its end");
    node.remove_pod(&host).await;
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_host_port_of_a_pod_on_a_plugins_network_is_reached_from_the_host_and_from_the_node() {
    let mut node = Node::prepare().await;
    configure(&node, BRIDGE);
    node = node.begin().await;
    node.load("busybox");
    let (port, datagrams) = (free_port(), free_port());
    let ports = [(cri::Protocol::Tcp, port, 80), (cri::Protocol::Udp, datagrams, 53)];
    let config = publish(&node, "web", &ports);
    let web = node.run_pod(&config).await;
    start(&node, &web, &config, "echo", "nc -ll -p 80 -e cat").await;
    let mut stream = echo_through(port).await;
    assert_eq!(echoed(&mut stream, "host"), "host", "by the host's loopback address");
    // As another machine would: the pod cannot answer such a client by itself.
    if let Some(own) = own_address() {
        let mut stream = TcpStream::connect((own, port)).expect("the port is there");
        stream.set_read_timeout(Some(patience())).expect("a limit");
        assert_eq!(echoed(&mut stream, "other"), "other", "by the host's address {own}");
    }
    // portmap's rules are the node's.
    let inside = node.exec_in_node(&format!(
        "for address in 127.0.0.1 10.94.0.1; do echo node | timeout 10 busybox nc -w 5 $address {port}; done"
    ));
    assert_eq!(inside.lines().collect::<Vec<_>>(), ["node", "node"]);
    let asker = start(&node, &web, &config, "asker", "sleep 600").await;
    let ask = format!("echo hairpin | timeout 10 nc -w 5 10.94.0.1 {port}");
    let said = node.exec(&asker, &["sh", "-c", &ask], 20).await.expect("ExecSync");
    assert_eq!(text(&said.stdout).trim(), "hairpin", "its own port: {}", text(&said.stderr));
    let mut server = echo_datagrams(&node, &web, 53);
    assert_datagrams_echoed(datagrams).await;
    server.kill().and_then(|()| server.wait()).expect("our child");
    node.remove_pod(&web).await;
    eventually("the port is free", || std::net::TcpListener::bind(("0.0.0.0", port)).ok()).await;
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_node_whose_network_is_anothers_says_so_in_check_and_in_status() {
    let mut node = Node::prepare().await;
    // As rootlesskit does it without --net: a user namespace, and the host's network.
    node.enter = ["unshare", "--map-root-user", "--map-auto", "--mount", "--"].map(str::to_owned).to_vec();
    let check = node.in_front(node.cricket(["check"])).output().expect("unshare runs");
    let said = text(&check.stdout);
    let line = said.lines().find(|line| line.contains("pod network")).unwrap_or_default();
    assert!(line.starts_with("warn") && line.contains("belongs to another user namespace"), "{said}");
    let node = node.begin().await;
    let missing = network_missing(&node).await.expect("no network");
    assert!(missing.contains("belongs to another user namespace") && missing.contains("--net="), "{missing}");
    node.terminate_and_account().await;
}

#[tokio::test]
async fn a_configuration_directory_that_cannot_be_read_is_told_and_is_not_taken_for_none() {
    let mut node = Node::prepare().await;
    // Nobody but root may look into it.
    std::os::unix::fs::symlink("/proc/1/fd", node.dir.join("net.d")).expect("a link of ours");
    node = node.begin().await;
    let missing = network_missing(&node).await.expect("no network");
    assert!(missing.contains("net.d") && missing.contains("cni_config_dir"), "{missing}");
    let check = node.cricket(["check"]).output().expect("it runs");
    let said = text(&check.stdout);
    assert!(said.lines().any(|line| line.starts_with("warn") && line.contains("cni_config_dir")), "{said}");
    node.stop_and_account().await;
}

#[tokio::test]
async fn without_a_driver_pods_reach_each_other_and_check_says_what_to_install() {
    let mut node = Node::prepare().await;
    leave_in_path(&mut node, &["newuidmap", "newgidmap"]);
    let check = node.in_front(node.cricket(["check"])).output().expect("it runs");
    let said = text(&check.stdout);
    let line = said.lines().find(|line| line.contains("pasta")).unwrap_or_default();
    assert!(line.starts_with("warn") && line.contains("slirp4netns"), "{said}");
    assert!(said.contains("apt install passt"), "{said}");
    let node = node.begin().await;
    node.load("busybox");
    let ((a, _), (b, of_b)) = (run(&node, "a").await, run(&node, "b").await);
    let in_a = start_sleeper(&node, &a, "a").await;
    for address in &of_b {
        assert_reached(&node, &in_a, address).await;
    }
    node.remove_pod(&a).await;
    node.remove_pod(&b).await;
    node.stop_and_account().await;
}
