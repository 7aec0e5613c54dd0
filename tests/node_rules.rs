//! What the node's rules let pods do and what not, in real network namespaces, as root of a user namespace of the
//! test's own: host ports on the node's addresses, hairpin, and no pod in another's name.

mod inside;

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use cricket::network::cni::CniOptions;
use cricket::network::ports::{HostPorts, PodPorts, PortMapping, PortsOptions, Protocol, running, stop};
use cricket::network::{Network, NetworkOptions, PodNetwork, PodRequest};
use cricket::store::PodId;
use cricket::sys::process::ProcessId;
use inside::inside;

/// For what takes a fraction of a second on a machine that does other things too.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
/// As many as the issue asks for.
const MANY: usize = 200;

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
        let waited = |_| {
            run("sleep 0.05");
            listens()
        };
        assert!(listens() || (0..100).any(waited), "nobody listens at {port}");
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
    network_in(File::open("/proc/self/ns/net").expect("a namespace").into(), None).await
}

/// The built-in network, started.
async fn network_in(node: OwnedFd, mtu: Option<u32>) -> Network {
    let cidrs = ["10.77.0.0/16", "fdc7:1cce:7::/64"].map(|c| c.parse().expect("a range")).to_vec();
    let nowhere = std::path::PathBuf::from("/nowhere");
    let cni = CniOptions {
        config_dir: nowhere.clone(),
        plugin_dirs: Vec::new(),
        attachments: nowhere,
        patience: std::time::Duration::from_secs(1),
    };
    let options =
        NetworkOptions { node, name: "cricket".to_owned(), cidrs, cidrs_of_kubelet: false, mtu, forwarded: true, cni };
    let network = Network::new(options).expect("a network");
    assert_eq!(network.missing().await, None);
    network
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
        network.adopt(&web.id, &of_web, vec![tcp(None, 8080, 80)]).await.expect("adopted");
        network.settle(Vec::new()).await.expect("settled");
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

/// A packet of SCTP (RFC 9260): a common header and an INIT, which a kernel without SCTP's sockets passes on as well.
fn sctp_init(port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(40_000_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    // Verification tag and checksum; nobody looks at the latter unless told to.
    packet.extend([0; 8]);
    let chunk: [&[u8]; 6] = [&[1, 0, 0, 20], &[0, 0, 0, 1], &65_536_u32.to_be_bytes(), &[0, 1], &[0, 1], &[0, 0, 0, 1]];
    packet.extend(chunk.concat());
    packet
}

/// One that hears all of SCTP in this thread's network namespace: the kernel may have no other sockets of it.
fn sctp_socket() -> OwnedFd {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::SCTP));
    let socket = socket.expect("root of this namespace has raw sockets");
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE)).expect("a limit");
    socket
}

#[test]
fn a_host_port_of_sctp_leads_to_the_pod_and_is_refused_where_only_a_forwarder_could() {
    let name = "a_host_port_of_sctp_leads_to_the_pod_and_is_refused_where_only_a_forwarder_could";
    inside(name, || async {
        let network = network().await;
        let pod = Pod::start();
        let port = PortMapping { protocol: Protocol::Sctp, host: None, host_port: 9000, pod_port: 80 };
        connected(&network, &pod, vec![port]).await;
        let namespace = pod.namespace();
        let (ready, listening) = std::sync::mpsc::channel();
        let arrived = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("the pod's namespace");
            let socket = sctp_socket();
            ready.send(()).expect("somebody waits");
            let mut packet = [0; 128];
            let length = rustix::io::read(&socket, &mut packet).expect("a packet");
            packet[..length].to_vec()
        });
        listening.recv().expect("it listens");
        let node = std::net::SocketAddrV4::new([10, 77, 0, 1].into(), 0);
        rustix::net::sendto(sctp_socket(), &sctp_init(9000), rustix::net::SendFlags::empty(), &node).expect("sent");
        let packet = arrived.join().expect("it heard one");
        // After the header of IP: where from, where to.
        assert_eq!(packet[22..24], 80_u16.to_be_bytes(), "{packet:?}");

        let state = std::env::temp_dir().join(format!("cricket-sctp-{}", std::process::id()));
        let served = |node: Option<OwnedFd>| {
            HostPorts::start(PortsOptions { state: state.clone(), executable: "/nowhere".into(), node, lookout: None })
                .expect("a table")
        };
        let asked = |port: PortMapping| PodPorts { whom: "default/web".into(), mappings: vec![port] };
        let (found, made) = (served(None), served(Some(pod.namespace())));
        found.reserve(&pod.id, asked(port)).await.expect("the node's rules lead there");
        let refused = made.reserve(&pod.id, asked(port)).await.expect_err("nothing leads there").to_string();
        assert!(refused.contains("9000/sctp") && refused.contains("as root"), "{refused}");
        let loopback = PortMapping { host: Some([127, 0, 0, 1].into()), ..port };
        let refused = found.reserve(&pod.id, asked(loopback)).await.expect_err("nothing leads there").to_string();
        assert!(refused.contains("loopback"), "{refused}");
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

impl Pod {
    /// Sends a frame, in hexadecimal digits, from its end of the pair as a raw socket does.
    fn sends_frame(&self, digits: &str) {
        let send = format!(
            "index=$(ip -o link show eth0 | cut -d: -f1); perl -e 'socket(S, 17, 3, 0x300) or die; \
            bind(S, pack(\"SnlSCCx8\", 17, 3, '$index', 0, 0, 0)) or die; defined(send(S, pack(\"H*\", \"{digits}\"), 0)) or die'"
        );
        assert!(self.run(&send), "perl sends a frame");
    }
}

fn digits(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// With its checksum (RFC 1071), behind whatever must stand before it.
fn summed(before: &[u8], mut header: Vec<u8>, at: usize) -> Vec<u8> {
    let all = [before, &header].concat();
    let sum = all.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !((folded & 0xffff) + (folded >> 16)) as u16;
    header[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    header
}

/// An IPv4 datagram to the node's port.
fn datagram(from: [u8; 4], port: u16, text: &[u8; 8]) -> Vec<u8> {
    let header = [&[0x45, 0, 0, 36, 0, 1, 0, 0, 64, 17, 0, 0][..], &from, &[10, 77, 0, 1]].concat();
    let udp = [&[0x15, 0xb3][..], &port.to_be_bytes(), &[0, 16, 0, 0], text].concat();
    [summed(&[], header, 10), udp].concat()
}

#[test]
fn frames_to_the_next_bridge_alone_go_past_no_rule() {
    inside("frames_to_the_next_bridge_alone_go_past_no_rule", || async {
        let network = network().await;
        let (victim, hostile, third) = (Pod::start(), Pod::start(), Pod::start());
        let of_victim = connected(&network, &victim, Vec::new()).await;
        let of_hostile = connected(&network, &hostile, Vec::new()).await;
        connected(&network, &third, Vec::new()).await;
        assert!(victim.pings("10.77.0.1") && third.pings(of_victim.addresses[0]) && hostile.pings("10.77.0.1"));
        let server = std::net::UdpSocket::bind("0.0.0.0:7779").expect("a port");
        server.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let mac = |pod: &PodNetwork| pod.hardware_address.expect("known");
        for last in 0..16_u8 {
            let to = [0x01, 0x80, 0xc2, 0, 0, last];
            hostile.sends_frame(&digits([&to[..], &mac(&of_victim), &[0x88, 0xcc], &[0; 46]].concat()));
            let falsely = datagram([203, 0, 113, 7], 7779, b"falsely!");
            hostile.sends_frame(&digits([&to[..], &mac(&of_hostile), &[8, 0], &falsely].concat()));
        }
        let learned = said(&format!("bridge fdb show br cricket0 | grep -i {}", {
            let parts: Vec<String> = mac(&of_victim).iter().map(|byte| format!("{byte:02x}")).collect();
            parts.join(":")
        }));
        assert!(
            learned.contains(&of_victim.node_interface) && !learned.contains(&of_hostile.node_interface),
            "{learned}"
        );
        assert!(third.pings(of_victim.addresses[0]), "frames for the victim go to the victim");
        // What it says in its own name arrives, and before it nothing did.
        let own = match of_hostile.addresses[0] {
            std::net::IpAddr::V4(own) => own.octets(),
            std::net::IpAddr::V6(_) => panic!("the first address is of IPv4"),
        };
        let bridge = [0x0a, 0x58, 10, 77, 0, 1];
        let honest = datagram(own, 7779, b"honestly");
        hostile.sends_frame(&digits([&bridge[..], &mac(&of_hostile), &[8, 0], &honest].concat()));
        let mut heard = [0; 64];
        let (length, from) = server.recv_from(&mut heard).expect("a datagram");
        assert_eq!((&heard[..length], from.ip()), (&b"honestly"[..], of_hostile.addresses[0]));
    });
}

#[test]
fn a_pod_cannot_keep_an_address_from_the_next_by_asking_for_it() {
    inside("a_pod_cannot_keep_an_address_from_the_next_by_asking_for_it", || async {
        let network = network().await;
        let (listener, hostile) = (Pod::start(), Pod::start());
        let of_listener = connected(&network, &listener, Vec::new()).await;
        let of_hostile = connected(&network, &hostile, Vec::new()).await;
        assert!(hostile.pings(of_listener.addresses[1]));
        // Another's address is asked for (RFC 4862, 5.4.3), over and over while that one makes sure that it is nobody's.
        let mac = of_hostile.hardware_address.expect("known");
        let asks_for = |wanted: [u8; 6]| {
            let end = [wanted[3], wanted[4], wanted[5]];
            let target =
                [&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, wanted[0] ^ 2, wanted[1], wanted[2], 0xff, 0xfe][..], &end].concat();
            let group = [&[0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff][..], &end].concat();
            let pseudo = [&[0; 16][..], &group, &[0, 0, 0, 24, 0, 0, 0, 58]].concat();
            let message = summed(&pseudo, [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target].concat(), 2);
            let header = [&[0x60, 0, 0, 0, 0, 24, 58, 255][..], &[0; 16], &group].concat();
            digits([&[0x33, 0x33, 0xff][..], &end, &mac, &[0x86, 0xdd], &header, &message].concat())
        };
        let victims = of_listener.hardware_address.expect("known");
        let count = |asked: [u8; 6]| {
            let [_, _, _, a, b, c] = asked;
            let from = format!("iifname {} ip6 daddr ff02::1:ff{a:02x}:{b:02x}{c:02x}", of_hostile.node_interface);
            run(&format!("nft add rule bridge counts heard icmpv6 type nd-neighbor-solicit {from} counter"))
        };
        let chain = "'{ type filter hook prerouting priority 0; }'";
        assert!(run(&format!("nft add table bridge counts && nft add chain bridge counts heard {chain}")));
        assert!(count(victims) && count(mac));
        hostile.sends_frame(&asks_for(victims));
        hostile.sends_frame(&asks_for(mac));
        let passed = said("nft list chain bridge counts heard | grep -o 'packets [0-9]*'");
        let passed: Vec<bool> = passed.lines().map(|line| line != "packets 0").collect();
        assert_eq!(passed, [false, true], "for another's address, and for its own");
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
        // With its first carrier the bridge gets an address of its own, a moment later.
        let deadline = std::time::Instant::now() + PATIENCE;
        while !said("ip -6 -o addr show dev cricket0 scope link").contains("fe80") {
            assert!(std::time::Instant::now() < deadline, "the bridge has no carrier");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        network.tear_down(&first).await.expect("torn down");
        let state = || {
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

/// Answers every stream and every datagram at port 80 of the pod with the address of who sent it.
fn tell_clients_their_address(pod: &Pod) {
    let namespace = pod.namespace();
    let (ready, listens) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("joined");
        let streams = std::net::TcpListener::bind("[::]:80").expect("a port");
        let datagrams = std::net::UdpSocket::bind("[::]:80").expect("a port");
        ready.send(()).expect("awaited");
        std::thread::spawn(move || {
            while let Ok((_, client)) = datagrams.recv_from(&mut [0; 64]) {
                let _ = datagrams.send_to(client.ip().to_canonical().to_string().as_bytes(), client);
            }
        });
        while let Ok((mut stream, client)) = streams.accept() {
            let _ = std::io::Write::write_all(&mut stream, client.ip().to_canonical().to_string().as_bytes());
        }
    });
    listens.recv().expect("it listens");
}

fn by_stream(address: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut stream, &mut said).ok().map(|_| said)
}

fn by_datagram(from: &str, address: &str) -> Option<String> {
    let socket = std::net::UdpSocket::bind(from).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    // Connected: an answer from another address than the one written to does not arrive.
    socket.connect(address).ok()?;
    socket.send(b"who am I?").ok()?;
    let mut said = [0; 64];
    let length = socket.recv(&mut said).ok()?;
    Some(String::from_utf8_lossy(&said[..length]).into_owned())
}

/// Nobody answers at it.
const FLOODED: u16 = 9090;
/// More than the forwarder has flows for.
const FLOOD: u16 = 12_000;

/// Every datagram to the flooded port is another client's; those of the other port at `address` are answered all the while.
fn flood_beside(address: &str) {
    for number in 0..FLOOD {
        let [high, low] = number.to_be_bytes();
        let client = std::net::UdpSocket::bind(std::net::SocketAddr::from(([127, 1, high, low], 5000)))
            .expect("a loopback address");
        client.send_to(b"flood", std::net::SocketAddr::from(([127, 0, 0, 1], FLOODED))).expect("sent");
        // As many as a socket holds.
        if number % 64 == 0 {
            assert_eq!(by_datagram("127.0.0.1:0", address).as_deref(), Some("10.77.0.1"), "after {number} datagrams");
        }
    }
}

/// The namespaces of the test stand for the host; the node is behind them.
#[test]
fn the_forwarder_carries_streams_and_datagrams_from_the_host_in_their_clients_names() {
    inside("the_forwarder_carries_streams_and_datagrams_from_the_host_in_their_clients_names", || async {
        assert!(run(
            "ip link add up0 type bridge && ip link set up0 up && ip addr add 198.51.100.1/24 dev up0 && ip addr add fd00:51::1/64 dev up0 nodad"
        ));
        let node = Pod::start();
        let network = network_in(node.namespace(), Some(1400)).await;
        let state = std::env::temp_dir().join(format!("cricket-ports-{}", std::process::id()));
        std::fs::create_dir_all(&state).expect("a directory");
        let start = || {
            let executable = env!("CARGO_BIN_EXE_cricket").into();
            let node = Some(node.namespace());
            HostPorts::start(PortsOptions { state: state.clone(), executable, node, lookout: None }).expect("a thread")
        };
        let ports = start();
        let (pod, other) = (Pod::start(), PodId::random());
        let mapping = |protocol, host_port, pod_port| PortMapping { protocol, host: None, host_port, pod_port };
        let flooded = mapping(Protocol::Udp, FLOODED, 81);
        let mappings = vec![mapping(Protocol::Tcp, 8080, 80), mapping(Protocol::Udp, 8080, 80), flooded];
        let wanted = || PodPorts { whom: "default/web".into(), mappings: mappings.clone() };
        ports.reserve(&pod.id, wanted()).await.expect("free ports");
        let made = network.set_up(request(&pod.id, pod.namespace(), mappings.clone())).await.expect("set up");
        assert!(pod.run("ip link show eth0 | grep -q 'mtu 1400'"), "{}", said("ip link"));
        ports.publish(&pod.id, made.destination()).await.expect("published");
        tell_clients_their_address(&pod);
        let check = |when: &str| {
            for (host, seen) in
                [("198.51.100.1", "198.51.100.1"), ("127.0.0.1", "10.77.0.1"), ("[fd00:51::1]", "fd00:51::1")]
            {
                let address = format!("{host}:8080");
                assert_eq!(by_stream(&address).as_deref(), Some(seen), "{when}: a stream to {address}");
                let got = by_datagram(&format!("{host}:0"), &address);
                assert_eq!(got.as_deref(), Some(seen), "{when}: a datagram to {address}");
            }
        };
        check("at first");
        flood_beside("127.0.0.1:8080");
        let refused = ports.reserve(&other, wanted()).await.expect_err("taken").to_string();
        assert!(refused.contains("taken by pod default/web"), "{refused}");

        // The daemon is started anew and finds everything.
        let process = running(&state).expect("a forwarder");
        drop(ports);
        let ports = start();
        ports.adopt(&pod.id, wanted(), made.destination()).await.expect("adopted");
        ports.settle().await.expect("settled");
        assert_eq!(running(&state), Some(process));
        check("after a restart of the daemon");

        // The forwarder is killed.
        assert!(run(&format!("kill -9 {}", process.pid)));
        let deadline = std::time::Instant::now() + PATIENCE;
        while running(&state).is_none_or(|now| now == process) || by_stream("127.0.0.1:8080").is_none() {
            assert!(std::time::Instant::now() < deadline, "it is started again");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        check("after the forwarder was killed");

        // A daemon that does not know the pod frees its ports.
        drop(ports);
        let ports = start();
        ports.settle().await.expect("settled");
        assert!(by_stream("198.51.100.1:8080").is_none());
        ports.reserve(&other, wanted()).await.expect("free ports");
        ports.release(&other).await.expect("released");
        stop(&state).expect("ended");
        assert!(running(&state).is_none());
        std::fs::remove_dir_all(&state).expect("removed");
    });
}

/// A client that goes on sending from one socket.
struct Sender(std::net::UdpSocket);

impl Sender {
    /// Half of the way between two packets of an eager client.
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
    /// Less than the kernel's own time for an entry that nobody uses (30 s), and entries are used all the while.
    const DEADLINE: std::time::Duration = std::time::Duration::from_secs(8);

    fn to(address: &str) -> Self {
        let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = std::net::UdpSocket::bind(any).expect("a port");
        socket.set_read_timeout(Some(Self::PAUSE)).expect("a limit");
        socket.connect(address).expect("an address");
        Self(socket)
    }

    /// Sends until something comes back.
    fn is_answered(&self) -> bool {
        let deadline = std::time::Instant::now() + Self::DEADLINE;
        while std::time::Instant::now() < deadline {
            // An earlier datagram's refusal is told by either.
            let _ = self.0.send(b"who am I?");
            match self.0.recv(&mut [0; 64]) {
                Ok(_) => return true,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => std::thread::sleep(Self::PAUSE),
            }
        }
        false
    }
}

#[test]
fn a_client_that_goes_on_sending_reaches_the_next_pod_that_has_the_port() {
    inside("a_client_that_goes_on_sending_reaches_the_next_pod_that_has_the_port", || async {
        assert!(run(
            "ip link add up0 type bridge && ip link set up0 up && ip addr add 198.51.100.1/24 dev up0 && ip addr add fd00:51::1/64 dev up0 nodad"
        ));
        let network = network().await;
        let port = PortMapping { protocol: Protocol::Udp, host: None, host_port: 8080, pod_port: 80 };
        let clients = ["198.51.100.1:8080", "[fd00:51::1]:8080"].map(Sender::to);
        // Before anybody has the port: the kernel takes note of a flow that leads to the node itself.
        clients.iter().for_each(|client| drop(client.0.send(b"anybody?")));
        let (first, filler, second) = (Pod::start(), Pod::start(), Pod::start());
        let before = connected(&network, &first, vec![port]).await;
        tell_clients_their_address(&first);
        assert!(clients.iter().all(Sender::is_answered), "the first pod answers");

        network.tear_down(&first.id).await.expect("torn down");
        // Has the first one's addresses, but not its port.
        connected(&network, &filler, Vec::new()).await;
        let after = connected(&network, &second, vec![port]).await;
        assert!(before.addresses.iter().all(|address| !after.addresses.contains(address)));
        tell_clients_their_address(&second);
        assert!(clients.iter().all(Sender::is_answered), "the second pod answers");
    });
}

fn new_namespace() -> OwnedFd {
    let make = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        File::open("/proc/thread-self/ns/net").expect("a namespace").into()
    };
    std::thread::spawn(make).join().expect("made")
}
