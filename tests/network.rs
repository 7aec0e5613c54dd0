//! The built-in network in real network namespaces, as root of a user namespace of the test's own.

mod inside;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use cricket::network::cni::CniOptions;
use cricket::network::outbound::{Driver, Outbound};
use cricket::network::{Network, NetworkOptions, PodRequest, dismantle};
use cricket::store::PodId;
use cricket::sys::process::ProcessId;
use inside::inside;

/// A process that holds a network namespace.
struct Pod {
    id: PodId,
    holder: Child,
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
        Self { id: PodId::random(), holder }
    }

    fn namespace(&self) -> OwnedFd {
        File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("a namespace").into()
    }

    fn request(&self) -> PodRequest {
        PodRequest {
            id: self.id.clone(),
            namespace: self.namespace(),
            holder: ProcessId::of(self.holder.id() as i32).expect("it runs"),
            config: Default::default(),
            cgroup: None,
            ports: Vec::new(),
        }
    }

    fn run(&self, command: &str) -> bool {
        let target = format!("--net=/proc/{}/ns/net", self.holder.id());
        let run = Command::new("nsenter").args([&target, "--", "sh", "-c", command]).status();
        run.expect("nsenter runs").success()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn network() -> Network {
    named("cricket", &["10.77.0.0/16", "fdc7:1cce:7::/64"])
}

fn named(name: &str, ranges: &[&str]) -> Network {
    let node = File::open("/proc/self/ns/net").expect("a namespace").into();
    let cidrs = ranges.iter().map(|range| range.parse().expect("a range")).collect();
    let nowhere = std::path::PathBuf::from("/nowhere");
    let patience = std::time::Duration::from_secs(1);
    let cni = CniOptions { config_dir: nowhere.clone(), plugin_dirs: Vec::new(), attachments: nowhere, patience };
    let name = name.to_owned();
    Network::new(NetworkOptions { node, name, cidrs, cidrs_of_kubelet: false, mtu: None, forwarded: false, cni })
        .expect("a network")
}

fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("nft runs");
    String::from_utf8(output.stdout).expect("text")
}

/// Names of the links, a line each.
fn links() -> String {
    let output = Command::new("ip").args(["-o", "link"]).output().expect("ip runs").stdout;
    let text = String::from_utf8(output).expect("text");
    text.lines().filter_map(|l| l.split(": ").nth(1)).map(|name| format!("{name}\n")).collect()
}

#[test]
fn two_pods_reach_each_other_and_the_node_over_both_families() {
    inside("two_pods_reach_each_other_and_the_node_over_both_families", || async {
        let network = network();
        let (one, two) = (Pod::start(), Pod::start());
        let first = network.set_up(one.request()).await.expect("set up");
        let second = network.set_up(two.request()).await.expect("set up");
        assert_ne!(first.addresses, second.addresses);
        for address in
            second.addresses.iter().map(ToString::to_string).chain(["10.77.0.1".into(), "fdc7:1cce:7::1".into()])
        {
            assert!(one.run(&format!("ping -c1 -W5 {address}")), "{address}");
        }
        assert!(links().contains(&first.node_interface));
        network.tear_down(&one.id).await.expect("torn down");
        network.tear_down(&one.id).await.expect("twice");
        assert!(!links().contains(&first.node_interface));
        assert!(links().contains(&second.node_interface));
    });
}

#[test]
fn a_restarted_network_finds_its_bridge_and_gives_no_address_twice() {
    inside("a_restarted_network_finds_its_bridge_and_gives_no_address_twice", || async {
        let (one, two) = (Pod::start(), Pod::start());
        let first = network().set_up(one.request()).await.expect("set up");
        let network = network();
        network.adopt(&one.id, &first, Vec::new()).await.expect("adopted");
        let second = network.set_up(two.request()).await.expect("set up");
        assert!(first.addresses.iter().all(|a| !second.addresses.contains(a)));
        assert!(two.run(&format!("ping -c1 -W5 {}", first.addresses[0])));
        let rules = nft(&["list", "table", "inet", "cricket"]);
        assert_eq!(rules.matches("masquerade").count(), 4, "{rules}");
        assert!(rules.contains("ip saddr 10.77.0.0/16 oifname != \"cricket0\" masquerade"), "{rules}");
    });
}

#[test]
fn a_pods_interface_has_the_mtu_of_the_uplink() {
    inside("a_pods_interface_has_the_mtu_of_the_uplink", || async {
        let network = network();
        let has = |pod: &Pod, mtu: u32| pod.run(&format!("ip -o link show eth0 | grep -q 'mtu {mtu} '"));
        let early = Pod::start();
        network.set_up(early.request()).await.expect("set up");
        assert!(has(&early, 1500), "without an uplink it is the usual one");

        let uplink = "ip link add up0 mtu 1380 type bridge && ip addr add 198.51.100.1/24 dev up0 && ip link set up0 up \
            && ip route add default via 198.51.100.2";
        assert!(Command::new("sh").args(["-c", uplink]).status().expect("sh runs").success());
        let late = Pod::start();
        let had = network.set_up(late.request()).await.expect("set up");
        assert!(has(&late, 1380), "an uplink that has come since is looked at");
        let node_side = format!("ip -o link show {} | grep -q 'mtu 1380 '", had.node_interface);
        assert!(Command::new("sh").args(["-c", &node_side]).status().expect("sh runs").success());
    });
}

#[test]
fn a_pod_whose_set_up_fails_leaves_nothing() {
    inside("a_pod_whose_set_up_fails_leaves_nothing", || async {
        let network = network();
        assert_eq!(network.missing().await, None);
        let pod = Pod::start();
        assert!(pod.run("ip link add eth0 type bridge"));
        let before = links();
        assert!(network.set_up(pod.request()).await.is_err());
        assert_eq!(links(), before);
    });
}

/// The namespaces of the test stand for the host: an address of its own, a default route, a server on it.
fn host_with_server() -> String {
    let set_up = "ip link set lo up && ip link add up0 type bridge && ip addr add 198.51.100.1/24 dev up0 \
        && ip link add up1 type veth peer name up2 && ip link set up1 master up0 && ip link set up1 up \
        && ip link set up2 up && ip link set up0 up && ip route add default via 198.51.100.2";
    assert!(Command::new("sh").args(["-c", set_up]).status().expect("sh runs").success());
    let listener = std::net::TcpListener::bind("198.51.100.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut connection, b"hello");
        }
    });
    format!("{}/{}", address.ip(), address.port())
}

fn recorded_pid(state: &std::path::Path) -> Option<u64> {
    let record = std::fs::read_to_string(state.join("outbound.json")).ok()?;
    serde_json::from_str::<serde_json::Value>(&record).ok()?["pid"].as_u64()
}

/// Until `what` is true; the test fails after half a minute.
async fn until(name: &str, mut what: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !what() {
        assert!(std::time::Instant::now() < deadline, "{name} did not come true in time");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// The host's only resolver is at a loopback address, as systemd-resolved's is, and knows one answer.
fn resolver_on_loopback() {
    let file = std::env::temp_dir().join(format!("cricket-resolv-{}", std::process::id()));
    std::fs::write(&file, "nameserver 127.0.0.53\n").expect("a file");
    answer_at("127.0.0.53", [203, 0, 113, 9]);
    let bind = Command::new("mount").arg("--bind").arg(&file).arg("/etc/resolv.conf").status();
    assert!(bind.expect("mount runs").success());
    std::fs::remove_file(&file).expect("removed");
}

/// A resolver to which every name has this one address.
fn answer_at(resolver: &str, known: [u8; 4]) {
    let socket = std::net::UdpSocket::bind((resolver, 53)).expect("the resolver's port");
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            // The question's name ends with an empty label; type and class follow.
            let end = query[12..length].iter().position(|byte| *byte == 0).map_or(length, |zero| 12 + zero + 5);
            let is_v4 = query[end - 3] == 1;
            let mut answer = query[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0]);
            if is_v4 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(known);
            }
            let _ = socket.send_to(&answer, client);
        }
    });
}

/// Says `secret` to whoever reaches the host's loopback; answers the port.
fn server_on_loopback() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut connection, b"secret");
        }
    });
    port
}

async fn a_way_out(driver: Driver) {
    let server = host_with_server();
    resolver_on_loopback();
    let loopback = server_on_loopback();
    let node = Pod::start();
    let state = std::env::temp_dir().join(format!("cricket-outbound-{}", std::process::id()));
    std::fs::create_dir_all(&state).expect("a directory");
    let ask = format!("test \"$(cat </dev/tcp/{server})\" = hello");
    let ask = || node.run(&format!("timeout 5 bash -c '{ask}'"));

    let first = Outbound::ensure(&state, node.namespace(), Some(driver), false).await.expect("a driver");
    until("the node reaches the host's server", ask).await;
    let pid = recorded_pid(&state).expect("a record");
    let resolves = format!("timeout 10 busybox nslookup host.test {} | grep -q 203.0.113.9", driver.resolver());
    until("the node resolves a name", || node.run(&resolves)).await;
    // Both drivers have the host at this address, if anywhere.
    let secret = |address: &str| {
        node.run(&format!("timeout 5 bash -c 'test \"$(cat </dev/tcp/{address}/{loopback})\" = secret' 2>/dev/null"))
    };
    for address in ["10.0.2.2", "10.0.2.100", "127.0.0.1", "198.51.100.1"] {
        assert!(!secret(address), "the host's loopback is reached at {address}");
    }

    // The host has another resolver from now on, at a loopback address too.
    answer_at("127.0.0.54", [203, 0, 113, 10]);
    std::fs::write("/etc/resolv.conf", "nameserver 127.0.0.54\n").expect("a file of the test's");
    first.follow_resolver();
    let resolves = resolves.replace("203.0.113.9", "203.0.113.10");
    until("the node asks the host's new resolver", || node.run(&resolves)).await;
    let now = recorded_pid(&state).expect("a record");
    assert_eq!(now != pid, driver == Driver::Pasta, "only pasta does not read the file anew");
    let pid = now;
    until("the node reaches the host's server as before", ask).await;

    drop(first);
    let second = Outbound::ensure(&state, node.namespace(), None, false).await.expect("the same driver");
    assert_eq!(second.driver(), driver);
    assert_eq!(recorded_pid(&state), Some(pid), "a restarted daemon finds the driver that runs");

    // Its record is damaged, or was never written.
    drop(second);
    let record = state.join("outbound.json");
    for damage in [Some("{\"version\": 1, \"dri"), None] {
        let damaged = damage.map_or_else(|| std::fs::remove_file(&record), |text| std::fs::write(&record, text));
        damaged.expect("a file of ours");
        let found = Outbound::ensure(&state, node.namespace(), None, false).await.expect("the same driver");
        assert_eq!(recorded_pid(&state), Some(pid), "the driver that runs is found without its record");
        drop(found);
    }
    until("the node reaches the host's server all the while", ask).await;
    let second = Outbound::ensure(&state, node.namespace(), None, false).await.expect("the same driver");

    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill runs").success());
    until("the dead driver is started again", || recorded_pid(&state).is_some_and(|p| p != pid)).await;
    until("the node reaches the host's server again", ask).await;

    drop(second);
    let asked_for = Outbound::ensure(&state, node.namespace(), Some(driver), true).await.expect("a driver");
    until("the host's loopback is reached when that is configured", || secret("10.0.2.2")).await;
    drop(asked_for);
    Outbound::stop(&state).expect("it ends");
    assert!(recorded_pid(&state).is_none());
    std::fs::remove_dir_all(&state).expect("removed");
}

#[test]
fn pasta_is_a_way_out_that_outlives_the_daemon_and_is_started_again() {
    inside("pasta_is_a_way_out_that_outlives_the_daemon_and_is_started_again", || a_way_out(Driver::Pasta));
}

#[test]
fn slirp4netns_is_a_way_out_that_outlives_the_daemon_and_is_started_again() {
    inside("slirp4netns_is_a_way_out_that_outlives_the_daemon_and_is_started_again", || a_way_out(Driver::Slirp4netns));
}

#[test]
fn two_networks_in_one_namespace_leave_each_other_alone() {
    inside("two_networks_in_one_namespace_leave_each_other_alone", || async {
        let (one, other) = (network(), named("cricket-0a1b2c", &["10.88.16.0/20"]));
        let (first, second) = (Pod::start(), Pod::start());
        one.set_up(first.request()).await.expect("set up");
        let address = other.set_up(second.request()).await.expect("set up").addresses[0];
        assert!(first.run(&format!("ping -c1 -W5 {address}")));
        let table = |name| nft(&["list", "table", "inet", name]).contains("masquerade");
        assert!(table("cricket") && table("cricket-0a1b2c"));
        // The same addresses twice would lead to either.
        let third = named("cricket-ffffff", &["10.77.0.0/20"]).set_up(Pod::start().request()).await;
        let error = third.expect_err("refused").to_string();
        assert!(error.contains("cricket0") && error.contains("10.77.0.0/20"), "{error}");

        dismantle("cricket-0a1b2c").expect("taken away");
        assert!(!links().contains("cricket-0a1b2c0") && !nft(&["list", "ruleset"]).contains("0a1b2c"));
        assert!(links().contains("cricket0") && table("cricket"));
        dismantle("cricket-0a1b2c").expect("twice");
    });
}

#[test]
fn an_interface_whose_bridge_was_removed_is_at_the_next_one() {
    inside("an_interface_whose_bridge_was_removed_is_at_the_next_one", || async {
        let pod = Pod::start();
        let had = network().set_up(pod.request()).await.expect("set up");
        dismantle("cricket").expect("taken away");
        let network = network();
        network.adopt(&pod.id, &had, Vec::new()).await.expect("adopted");
        assert!(!pod.run("ping -c1 -W1 10.77.0.1"));
        network.settle(Vec::new()).await.expect("settled");
        assert!(pod.run("ping -c1 -W5 10.77.0.1"));
        network.tear_down(&pod.id).await.expect("torn down");
    });
}
