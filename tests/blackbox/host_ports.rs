//! Host ports of an ordinary user: reached from the host, while daemons come and go. Datagrams: tests/node_rules.rs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::time::Duration;

use cricket::proto::cri;

use crate::node::{Node, container, eventually, patience, pod, succeed, text};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// A port that nobody has at this moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

pub fn publish(node: &Node, name: &str, ports: &[(cri::Protocol, u16, i32)]) -> cri::PodSandboxConfig {
    let mut config = pod(node, name);
    let options = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    let options = options.and_then(|security| security.namespace_options.as_mut()).expect("a test's pod has options");
    options.network = cri::NamespaceMode::Pod.into();
    let mapping = |&(protocol, host_port, container_port): &(cri::Protocol, u16, i32)| cri::PortMapping {
        protocol: protocol.into(),
        host_port: host_port.into(),
        container_port,
        host_ip: String::new(),
    };
    config.port_mappings = ports.iter().map(mapping).collect();
    config
}

/// A container that runs a line of shell in a pod that is up.
pub async fn start(node: &Node, pod: &str, config: &cri::PodSandboxConfig, name: &str, line: &str) -> String {
    let mut shell = container(name, &["sh", "-c", line]);
    shell.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
    node.start_container(pod, shell, config).await
}

async fn refused(node: &Node, config: cri::PodSandboxConfig) -> tonic::Status {
    let request = cri::RunPodSandboxRequest { config: Some(config), ..Default::default() };
    node.runtime().await.run_pod_sandbox(request).await.expect_err("refused")
}

fn dial(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is there");
    stream.set_read_timeout(Some(patience())).expect("a limit");
    stream
}

/// What is echoed.
pub fn echoed(stream: &mut TcpStream, word: &str) -> String {
    stream.write_all(format!("{word}\n").as_bytes()).expect("sent");
    let mut answer = vec![0; word.len() + 1];
    stream.read_exact(&mut answer).expect("echoed");
    String::from_utf8_lossy(&answer).trim().to_owned()
}

/// Echoes datagrams at a port of the pod until the node ends; the images have no program that does.
pub fn echo_datagrams(node: &Node, pod: &str, port: u16) -> Child {
    let namespace = format!("--net=/proc/{}/ns/net", node.supervisor_of(pod));
    let server = format!(
        "my $socket = IO::Socket::INET->new(LocalPort => {port}, Proto => 'udp') or die $@; print qq(ready\\n); close STDOUT;
         while (defined $socket->recv(my $datagram, 65535)) {{ $socket->send($datagram) }}"
    );
    let arguments = ["enter", "--", "nsenter", &namespace, "perl", "-MIO::Socket::INET", "-e", &server];
    let mut server = node.cricket(arguments).stdout(Stdio::piped()).spawn().expect("cricket enter");
    let mut said = String::new();
    server.stdout.take().expect("piped").read_to_string(&mut said).expect("it says something");
    assert_eq!(said, "ready\n");
    server
}

/// A datagram to the host's loopback is answered; one may be lost.
pub async fn assert_datagrams_echoed(port: u16) {
    let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
    client.set_read_timeout(Some(Duration::from_millis(200))).expect("a limit");
    client.connect(("127.0.0.1", port)).expect("an address");
    eventually("a datagram is echoed", || {
        let mut buffer = [0; 64];
        client.send(b"datagram").ok()?;
        client.recv(&mut buffer).ok().filter(|length| &buffer[..*length] == b"datagram")
    })
    .await;
}

/// A connection of its own, tried until somebody listens in the pod.
pub async fn echo_through(port: u16) -> TcpStream {
    eventually("the pod's server answers", || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(patience())).ok()?;
        stream.write_all(b"there?\n").ok()?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).ok().filter(|()| &answer == b"there?\n").map(|()| stream)
    })
    .await
}

#[tokio::test]
async fn a_host_port_is_reached_from_the_host_and_its_connections_survive_the_daemon() {
    let mut node = Node::start().await;
    node.load("busybox");
    let (tcp, udp) = (free_port(), free_port());
    let config = publish(&node, "web", &[(cri::Protocol::Tcp, tcp, 80), (cri::Protocol::Udp, udp, 53)]);
    let web = node.run_pod(&config).await;
    start(&node, &web, &config, "echo", "nc -ll -p 80 -e cat").await;
    let mut before = echo_through(tcp).await;
    let mut datagrams = echo_datagrams(&node, &web, 53);
    assert_datagrams_echoed(udp).await;

    node.kill_daemon();
    assert_eq!(echoed(&mut before, "without"), "without", "a connection without a daemon");
    assert_datagrams_echoed(udp).await;
    let mut between = dial(tcp);
    assert_eq!(echoed(&mut between, "new"), "new", "a new connection without a daemon");
    node.serve();
    node.wait_until_ready().await;
    assert_eq!(echoed(&mut before, "again"), "again", "a connection over a restart");

    let inside = node.exec_in_node(&format!("echo node | timeout 10 busybox nc -w 5 127.0.0.1 {tcp}"));
    assert_eq!(inside.trim(), "node", "the node's own loopback");

    // A pod's own port, and another's, by the node's address: the first of the pod's range.
    let asker = start(&node, &web, &config, "asker", "sleep 600").await;
    let route = node.exec(&asker, &["ip", "route"], 20).await.expect("ExecSync");
    let route = text(&route.stdout);
    let gateway =
        route.lines().find_map(|line| line.strip_prefix("default via ")?.split(' ').next()).expect("a gateway");
    let ask = format!("echo hairpin | timeout 10 nc -w 5 {} {tcp}", gateway);
    let said = node.exec(&asker, &["sh", "-c", &ask], 20).await.expect("ExecSync");
    assert_eq!(text(&said.stdout).trim(), "hairpin", "{}", text(&said.stderr));

    assert!(UdpSocket::bind(("0.0.0.0", udp)).is_err(), "its ports are taken");
    datagrams.kill().and_then(|()| datagrams.wait()).expect("our child");
    node.remove_pod(&web).await;
    let mut buffer = [0; 64];
    assert!(before.read(&mut buffer).map_or(true, |length| length == 0), "its connections end with the pod");
    assert!(
        TcpListener::bind(("0.0.0.0", tcp)).is_ok() && UdpSocket::bind(("0.0.0.0", udp)).is_ok(),
        "its ports are free"
    );
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_who_has_it() {
    let node = Node::start().await;
    let own = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = own.local_addr().expect("bound").port();
    let status = refused(&node, publish(&node, "late", &[(cri::Protocol::Tcp, taken, 80)])).await;
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    let named = status.message().contains(&format!("{taken}/tcp"));
    let holder = format!("(pid {}) on the host", std::process::id());
    assert!(named && status.message().contains(&holder), "{}", status.message());

    let port = free_port();
    let first = node.run_pod(&publish(&node, "first", &[(cri::Protocol::Tcp, port, 80)])).await;
    let status = refused(&node, publish(&node, "second", &[(cri::Protocol::Tcp, port, 81)])).await;
    assert!(status.message().contains("default/first"), "{}", status.message());
    let status = refused(&node, publish(&node, "low", &[(cri::Protocol::Tcp, 1, 80)])).await;
    let low = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").expect("a limit");
    if low.trim() != "0" {
        assert!(status.message().contains("net.ipv4.ip_unprivileged_port_start=1"), "{}", status.message());
    }
    let status = refused(&node, publish(&node, "sctp", &[(cri::Protocol::Sctp, free_port(), 80)])).await;
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    // Whoever runs this as root has it: tests/node_rules.rs.
    assert!(status.message().contains("/sctp") && status.message().contains("as root"), "{}", status.message());
    node.remove_pod(&first).await;
    let again = node.run_pod(&publish(&node, "second", &[(cri::Protocol::Tcp, port, 81)])).await;
    node.remove_pod(&again).await;
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_person_publishes_a_port_and_sees_it_listed() {
    let node = Node::start().await;
    node.load("busybox");
    let port = free_port();
    let publish = format!("127.0.0.1:{port}:80");
    succeed(
        &mut node.cricket([
            "run", "--detach", "--name", "web", "-p", &publish, BUSYBOX, "nc", "-ll", "-p", "80", "-e", "cat",
        ]),
    );
    let mut stream = echo_through(port).await;
    assert_eq!(echoed(&mut stream, "hello"), "hello");
    for list in ["ps", "pods"] {
        let said = text(&succeed(&mut node.cricket([list])).stdout).to_owned();
        assert!(said.contains(&format!("127.0.0.1:{port}->80/tcp")), "{list}: {said}");
    }
    node.stop_and_account().await;
}

#[tokio::test]
async fn killed_pods_leave_no_port_and_no_interface_to_the_next_daemon() {
    const PODS: usize = 9;
    let mut node = Node::start().await;
    let mut pods = Vec::new();
    for index in 0..PODS {
        let port = free_port();
        let pod = node.run_pod(&publish(&node, &format!("pod-{index}"), &[(cri::Protocol::Tcp, port, 80)])).await;
        pods.push((pod, port));
    }
    let interfaces = |node: &Node| {
        let said = succeed(&mut node.cricket(["enter", "--", "ip", "-o", "link"]));
        text(&said.stdout).lines().filter(|line| line.contains(": ck")).count()
    };
    assert_eq!(interfaces(&node), PODS);
    node.kill_daemon();
    for (pod, _) in pods.iter().step_by(3) {
        let pid = node.supervisor_of(pod);
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("ours");
    }
    node.serve();
    node.wait_until_ready().await;
    for (index, (pod, port)) in pods.iter().enumerate() {
        let is_free = TcpListener::bind(("0.0.0.0", *port)).is_ok();
        assert_eq!(is_free, index % 3 == 0, "port {port} of {pod}");
    }
    assert_eq!(interfaces(&node), PODS - PODS.div_ceil(3));
    for (pod, port) in &pods {
        node.remove_pod(pod).await;
        assert!(TcpListener::bind(("0.0.0.0", *port)).is_ok(), "port {port} is free");
    }
    assert_eq!(interfaces(&node), 0);
    node.stop_and_account().await;
}

/// `STATE/forwarder.json`'s process.
fn recorded_forwarder(node: &Node) -> Option<i64> {
    let text = std::fs::read(node.dir.join("run/forwarder.json")).ok()?;
    let record: serde_json::Value = serde_json::from_slice(&text).ok()?;
    record["process"]["pid"].as_i64()
}

fn is_there(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[tokio::test]
async fn a_forwarder_that_lost_its_record_or_its_socket_is_found_by_the_next_daemon() {
    let mut node = Node::start().await;
    node.load("busybox");
    let port = free_port();
    let config = publish(&node, "web", &[(cri::Protocol::Tcp, port, 80)]);
    let web = node.run_pod(&config).await;
    start(&node, &web, &config, "echo", "nc -ll -p 80 -e cat").await;
    let mut before = echo_through(port).await;
    let forwarder = recorded_forwarder(&node).expect("a record");

    // As a daemon leaves it that was killed before it wrote the record.
    node.kill_daemon();
    std::fs::remove_file(node.dir.join("run/forwarder.json")).expect("a record");
    node.serve();
    node.wait_until_ready().await;
    assert_eq!(recorded_forwarder(&node), Some(forwarder), "it is recorded");
    assert_eq!(echoed(&mut before, "again"), "again", "and goes on");

    // Nobody can speak to it any more: another serves the pod, with its record or without.
    for lost in [&["forwarder.sock"][..], &["forwarder.sock", "forwarder.json"]] {
        let old = recorded_forwarder(&node).expect("a record");
        node.kill_daemon();
        lost.iter().for_each(|name| std::fs::remove_file(node.dir.join("run").join(name)).expect("a file of ours"));
        node.serve();
        node.wait_until_ready().await;
        assert!(!is_there(old), "{lost:?}: the one that was there is ended");
        let mut stream = echo_through(port).await;
        assert_eq!(echoed(&mut stream, "hello"), "hello", "{lost:?}");
        assert!(recorded_forwarder(&node).is_some_and(|new| new != old && is_there(new)), "{lost:?}");
    }
    assert!(node.daemon_said().contains("connections through it are lost"));

    node.remove_pod(&web).await;
    assert!(TcpListener::bind(("0.0.0.0", port)).is_ok(), "its port is free");
    node.stop_and_account().await;
}
