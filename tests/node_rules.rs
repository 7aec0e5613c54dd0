//! What the node's rules let pods do and what not, in real network namespaces, as root of a user namespace of the
//! test's own: host ports on the node's addresses, hairpin, and no pod in another's name.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use cricket::network::cni::CniOptions;
use cricket::network::ports::{PortMapping, Protocol};
use cricket::network::{Network, NetworkOptions, PodNetwork, PodRequest};
use cricket::store::PodId;
use cricket::sys::process::ProcessId;

/// Set in the copy of the test that runs inside the namespaces.
const INSIDE: &str = "CRICKET_TEST_INSIDE";
/// As many as the issue asks for.
const MANY: usize = 200;

/// Runs `work` in namespaces of the test's own, by running the test `name` once more.
fn inside<F: Future<Output = ()>>(name: &str, work: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        assert!(run("ip link set lo up && sysctl -qw net.ipv4.ping_group_range='0 0'"));
        return runtime.block_on(work());
    }
    let exe = std::env::current_exe().expect("the test's own path");
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--"])
        .arg(exe)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare runs");
    assert!(status.success(), "{name} inside the namespaces: {status}");
}

fn run(command: &str) -> bool {
    Command::new("sh").args(["-c", command]).status().expect("sh runs").success()
}

fn said(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A process that holds a network namespace.
struct Pod {
    id: PodId,
    holder: Child,
    servers: Vec<Child>,
}

impl Pod {
    fn start() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "ip link set lo up; echo ready; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut ready = [0; 6];
        std::io::Read::read_exact(holder.stdout.as_mut().expect("piped"), &mut ready).expect("ready");
        Self { id: PodId::random(), holder, servers: Vec::new() }
    }

    fn namespace(&self) -> OwnedFd {
        File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("a namespace").into()
    }

    fn inside(&self, command: &str) -> Command {
        let mut enter = Command::new("nsenter");
        enter.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).args(["--", "sh", "-c", command]);
        enter
    }

    fn run(&self, command: &str) -> bool {
        self.inside(command).status().expect("nsenter runs").success()
    }

    fn pings(&self, address: impl std::fmt::Display) -> bool {
        self.run(&format!("ping -c1 -W2 {address} >/dev/null 2>&1"))
    }

    /// Answers `text` to whoever connects to `port`.
    fn serve(&mut self, port: u16, text: &str) {
        let server = self.inside(&format!("exec busybox nc -ll -p {port} -e echo {text}")).spawn();
        self.servers.push(server.expect("nsenter runs"));
        let listens = || self.run(&format!("ss -Htln 'sport = {port}' | grep -q ."));
        assert!((0..100).any(|_| listens() || run("sleep 0.05") && false), "nobody listens at {port}");
    }

    /// What is answered at `address`, a pair that nc takes.
    fn asks(&self, address: &str) -> String {
        let output =
            self.inside(&format!("timeout 5 busybox nc -w 3 {address} </dev/null")).output().expect("nsenter runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for child in self.servers.iter_mut().chain([&mut self.holder]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn request(id: &PodId, namespace: OwnedFd, ports: Vec<PortMapping>) -> PodRequest {
    let holder = ProcessId::own().expect("this process");
    PodRequest { id: id.clone(), namespace, holder, config: Default::default(), cgroup: None, ports }
}

async fn network() -> Network {
    let node = File::open("/proc/self/ns/net").expect("a namespace").into();
    let cidrs = ["10.77.0.0/16", "fdc7:1cce:7::/64"].map(|c| c.parse().expect("a range")).to_vec();
    let nowhere = std::path::PathBuf::from("/nowhere");
    let cni = CniOptions {
        config_dir: nowhere.clone(),
        plugin_dirs: Vec::new(),
        attachments: nowhere,
        patience: std::time::Duration::from_secs(1),
    };
    let options = NetworkOptions { node, cidrs, cidrs_of_kubelet: false, mtu: None, forwarded: true, cni };
    Network::new(options).expect("a network")
}

async fn connected(network: &Network, pod: &Pod, ports: Vec<PortMapping>) -> PodNetwork {
    network.set_up(request(&pod.id, pod.namespace(), ports)).await.expect("set up")
}

fn tcp(host: Option<&str>, host_port: u16, pod_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Tcp, host: host.map(|h| h.parse().expect("an address")), host_port, pod_port }
}

#[test]
fn a_host_port_is_reached_from_the_node_from_other_pods_and_from_its_own() {
    inside("a_host_port_is_reached_from_the_node_from_other_pods_and_from_its_own", || async {
        assert!(run("ip link add up0 type bridge && ip link set up0 up && ip addr add 198.51.100.1/24 dev up0"));
        let network = network().await;
        let (mut web, other) = (Pod::start(), Pod::start());
        let ports = vec![tcp(None, 8080, 80), tcp(Some("198.51.100.1"), 9090, 80)];
        let of_web = connected(&network, &web, ports).await;
        connected(&network, &other, Vec::new()).await;
        web.serve(80, "web");
        for address in ["198.51.100.1 8080", "198.51.100.1 9090", "10.77.0.1 8080", "fdc7:1cce:7::1 8080"] {
            assert_eq!(
                said(&format!("timeout 5 busybox nc -w 3 {address} </dev/null")).trim(),
                "web",
                "node to {address}"
            );
            assert_eq!(other.asks(address), "web", "another pod to {address}");
            assert_eq!(web.asks(address), "web", "itself to {address}");
        }
        assert_eq!(other.asks("10.77.0.1 9090"), "", "only one address was asked for");
        // The daemon is started anew: what it adopts goes on, what it does not ends.
        let network = self::network().await;
        assert_eq!(other.asks("10.77.0.1 8080"), "web", "also while no daemon is ready");
        network
            .adopt(
                &web.id,
                &of_web,
                web.namespace(),
                ProcessId::own().expect("this process"),
                vec![tcp(None, 8080, 80)],
            )
            .await
            .expect("adopted");
        network.settle().await.expect("settled");
        assert_eq!(web.asks("10.77.0.1 8080"), "web");
        assert!(
            !said("ip -o link").contains(&format!("ck{}", &other.id.as_str()[..13])),
            "nobody's interface is removed"
        );
        // A firewall that is started anew takes our tables with it; the next pod brings them back.
        assert!(run("nft flush ruleset"));
        let third = Pod::start();
        connected(&network, &third, Vec::new()).await;
        assert_eq!(third.asks("10.77.0.1 8080"), "web");
        network.tear_down(&web.id).await.expect("torn down");
        assert!(!said("nft list map inet cricket ports4").contains("8080"));
    });
}

#[test]
fn a_pod_cannot_speak_in_anothers_name_nor_take_the_bridge_down() {
    inside("a_pod_cannot_speak_in_anothers_name_nor_take_the_bridge_down", || async {
        let network = network().await;
        let (victim, hostile, third) = (Pod::start(), Pod::start(), Pod::start());
        let of_victim = connected(&network, &victim, Vec::new()).await;
        let of_hostile = connected(&network, &hostile, Vec::new()).await;
        connected(&network, &third, Vec::new()).await;
        let (v4, v6) = (of_victim.addresses[0], of_victim.addresses[1]);
        assert!(third.pings(v4) && third.pings(v6) && hostile.pings(v4) && hostile.pings(v6));

        // Another pod's addresses, and the gateway's, beside its own.
        assert!(hostile.run(&format!("ip addr add {v4}/32 dev eth0 && ip addr add {v6}/128 dev eth0 nodad")));
        assert!(hostile.run("ip addr add 10.77.0.1/32 dev eth0"));
        for stolen in [v4.to_string(), "10.77.0.1".to_owned()] {
            assert!(!hostile.run(&format!("ping -c1 -W1 -I {stolen} 10.77.0.4 >/dev/null 2>&1")), "as {stolen}");
            let _ = hostile.run(&format!("arping -q -U -c 2 -I eth0 {stolen} 2>/dev/null"));
        }
        assert!(!hostile.run(&format!("ping -c1 -W1 -I {v6} fdc7:1cce:7::4 >/dev/null 2>&1")), "as {v6}");
        assert!(third.run("ip neigh flush all") && third.pings(v4) && third.pings(v6) && third.pings("10.77.0.1"));
        let mac = |pod: &PodNetwork| pod.hardware_address.expect("known").map(|b| format!("{b:02x}")).join(":");
        assert!(!said("ip neigh show dev cricket0").contains(&format!("{v4} lladdr {}", mac(&of_hostile))));

        // Another pod's MAC address.
        let taken =
            format!("ip addr del {v4}/32 dev eth0; ip addr del {v6}/128 dev eth0; ip addr del 10.77.0.1/32 dev eth0");
        assert!(hostile.run(&taken));
        assert!(hostile.pings("10.77.0.1"));
        assert!(hostile.run(&format!("ip link set eth0 address {} && ip link set eth0 up", mac(&of_victim))));
        assert!(!hostile.pings("10.77.0.1"), "with a stolen MAC address");
        assert!(third.pings(v4) && victim.pings("10.77.0.1"), "frames for the victim go to the victim");
        let learned = said(&format!("bridge fdb show br cricket0 | grep -i {}", mac(&of_victim)));
        assert!(!learned.contains(&of_hostile.node_interface), "{learned}");

        // Nothing that it does to its own end does anything to the bridge.
        assert!(!hostile.run("ip link set cricket0 down 2>/dev/null") && hostile.run("ip link del eth0"));
        assert!(third.pings(v4) && third.pings("10.77.0.1"));
        network.tear_down(&hostile.id).await.expect("its interface is gone already");
        let rules = said("nft list ruleset");
        assert!(!rules.contains(&of_hostile.node_interface) && rules.contains(&of_victim.node_interface), "{rules}");
    });
}

#[test]
fn a_pod_does_not_reach_services_at_the_nodes_loopback_addresses() {
    inside("a_pod_does_not_reach_services_at_the_nodes_loopback_addresses", || async {
        let network = network().await;
        let pod = Pod::start();
        connected(&network, &pod, Vec::new()).await;
        let local = std::net::TcpListener::bind("127.0.0.1:7777").expect("a port");
        local.set_nonblocking(true).expect("a mode");
        let everywhere = std::net::TcpListener::bind("0.0.0.0:7778").expect("a port");
        // As kube-proxy has it.
        assert!(run("sysctl -qw net.ipv4.conf.all.route_localnet=1"));
        assert!(pod.run("sysctl -qw net.ipv4.conf.all.route_localnet=1"));
        assert!(
            pod.run("ip link set lo down; ip route flush table local; ip route add 127.0.0.0/8 via 10.77.0.1 dev eth0")
        );
        assert!(pod.run("ip route add local 10.77.0.2 dev eth0 table local"));
        assert!(!pod.run("timeout 2 bash -c 'exec 3<>/dev/tcp/127.0.0.1/7777' 2>/dev/null"), "the node's loopback");
        assert!(local.accept().is_err());
        assert!(pod.run("timeout 5 bash -c 'exec 3<>/dev/tcp/10.77.0.1/7778'"), "the node itself is reached");
        assert!(everywhere.accept().is_ok());
    });
}

#[test]
fn two_hundred_pods_a_third_of_which_die_leave_nothing() {
    inside("two_hundred_pods_a_third_of_which_die_leave_nothing", || async {
        let network = network().await;
        let first = PodId::random();
        network.set_up(request(&first, new_namespace(), Vec::new())).await.expect("set up");
        network.tear_down(&first).await.expect("torn down");
        let state = || {
            // The bridge's carrier is the first pod's.
            let links = said("ip -o link | cut -d' ' -f2");
            [
                links,
                said("ip -o addr show dev cricket0 | tr -s ' ' | cut -d' ' -f4"),
                said("ip rule"),
                said("nft list ruleset"),
            ]
        };
        let before = state();
        let mut pods = Vec::new();
        let mut addresses = HashSet::new();
        for index in 0..MANY {
            let (id, namespace) = (PodId::random(), new_namespace());
            let ports = vec![tcp(None, 10000 + index as u16, 80)];
            let copy = namespace.try_clone().expect("a descriptor");
            let made = network.set_up(request(&id, copy, ports)).await.expect("set up");
            assert!(made.addresses.iter().all(|address| addresses.insert(*address)), "{made:?}");
            pods.push((id, namespace));
        }
        for (index, (id, namespace)) in pods.into_iter().enumerate() {
            match index % 3 {
                // Its namespace ends first, with the interface.
                0 => {
                    drop(namespace);
                    network.tear_down(&id).await.expect("torn down");
                }
                1 => {
                    assert!(run(&format!("ip link del ck{}", &id.as_str()[..13])));
                    network.tear_down(&id).await.expect("torn down");
                }
                _ => network.tear_down(&id).await.expect("torn down"),
            }
        }
        assert_eq!(state(), before);
    });
}

fn new_namespace() -> OwnedFd {
    let make = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        File::open("/proc/thread-self/ns/net").expect("a namespace").into()
    };
    std::thread::spawn(make).join().expect("made")
}
