//! The built-in network in real network namespaces, as root of a user namespace of the test's own.

mod inside;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use cricket::network::cni::CniOptions;
use cricket::network::outbound::{Driver, Outbound, OutboundOptions};
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
        Self::start_with(&[])
    }

    /// With options of unshare, for other namespaces of its own.
    fn start_with(options: &[&str]) -> Self {
        let mut holder = Command::new("unshare")
            .args(options)
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

/// The namespaces of the test stand for the host: addresses of its own, default routes, a server on each.
fn host_with_servers() -> [String; 2] {
    let set_up = "ip link set lo up && ip link add up0 type bridge && ip addr add 198.51.100.1/24 dev up0 \
        && ip addr add 2001:db8:7::1/64 dev up0 nodad && ip link add up1 type veth peer name up2 && ip link set up1 master up0 && ip link set up1 up \
        && ip link set up2 up && ip link set up0 up && ip route add default via 198.51.100.2 && ip route add default via 2001:db8:7::2";
    assert!(Command::new("sh").args(["-c", set_up]).status().expect("sh runs").success());
    ["198.51.100.1", "2001:db8:7::1"].map(|address| {
        let address: std::net::IpAddr = address.parse().expect("an address");
        let listener = std::net::TcpListener::bind((address, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        std::thread::spawn(move || {
            for mut connection in listener.incoming().flatten() {
                let _ = std::io::Write::write_all(&mut connection, b"hello");
            }
        });
        format!("{address}/{port}")
    })
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
    let servers = host_with_servers();
    resolver_on_loopback();
    let loopback = server_on_loopback();
    let node = Pod::start();
    let state = std::env::temp_dir().join(format!("cricket-outbound-{}", std::process::id()));
    std::fs::create_dir_all(&state).expect("a directory");
    let ask = |server: &String| node.run(&format!("timeout 5 bash -c 'test \"$(cat </dev/tcp/{server})\" = hello'"));
    let ask = || servers.iter().all(ask);
    let options = |driver, host_loopback| OutboundOptions {
        state: state.clone(),
        executable: env!("CARGO_BIN_EXE_cricket").into(),
        network: node.namespace(),
        driver,
        host_loopback,
    };

    let first = Outbound::ensure(options(Some(driver), false)).await.expect("a driver");
    until("the node reaches the host's servers", ask).await;
    let pid = recorded_pid(&state).expect("a record");
    let resolves = format!("timeout 10 busybox nslookup host.test {} | grep -q 203.0.113.9", driver.resolvers().v4);
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
    // And then one that has an address of IPv6 only, beside one that is no resolver of the host's.
    answer_at("::1", [203, 0, 113, 11]);
    std::fs::write("/etc/resolv.conf", "nameserver ::1\n").expect("a file of the test's");
    first.follow_resolver();
    let v6 = driver.resolvers().v6;
    let resolves = format!("timeout 10 busybox nslookup host.test {v6} | grep -q 203.0.113.11");
    until("the node asks the host's resolver over IPv6", || node.run(&resolves)).await;
    until("the node reaches the host's servers as before", ask).await;
    let pid = recorded_pid(&state).expect("a record");

    drop(first);
    let second = Outbound::ensure(options(None, false)).await.expect("the same driver");
    assert_eq!(second.driver(), driver);
    assert_eq!(recorded_pid(&state), Some(pid), "a restarted daemon finds the driver that runs");

    // Its record is damaged, or was never written.
    drop(second);
    let record = state.join("outbound.json");
    for damage in [Some("{\"version\": 1, \"dri"), None] {
        let damaged = damage.map_or_else(|| std::fs::remove_file(&record), |text| std::fs::write(&record, text));
        damaged.expect("a file of ours");
        let found = Outbound::ensure(options(None, false)).await.expect("the same driver");
        assert_eq!(recorded_pid(&state), Some(pid), "the driver that runs is found without its record");
        drop(found);
    }
    until("the node reaches the host's server all the while", ask).await;
    let second = Outbound::ensure(options(None, false)).await.expect("the same driver");

    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill runs").success());
    until("the dead driver is started again", || recorded_pid(&state).is_some_and(|p| p != pid)).await;
    until("the node reaches the host's servers again", ask).await;

    // The same without a daemon.
    drop(second);
    let pid = recorded_pid(&state).expect("a record");
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill runs").success());
    until("the dead driver is started again", || recorded_pid(&state).is_some_and(|p| p != pid)).await;
    until("the node reaches the host's servers without a daemon", ask).await;

    // Who keeps it is killed, and the driver with him: the daemon starts both.
    let third = Outbound::ensure(options(None, false)).await.expect("the same driver");
    let pid = recorded_pid(&state).expect("a record");
    let keeper = Outbound::running(&state).into_iter().find(|process| process.pid as u64 != pid).expect("a keeper");
    assert!(Command::new("kill").args(["-9", &keeper.pid.to_string()]).status().expect("kill runs").success());
    until("both are started again", || recorded_pid(&state).is_some_and(|p| p != pid)).await;
    until("the node reaches the host's servers by the new keeper's driver", ask).await;

    drop(third);
    let asked_for = Outbound::ensure(options(Some(driver), true)).await.expect("a driver");
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

#[test]
fn what_is_taken_away_from_outside_is_put_back() {
    inside("what_is_taken_away_from_outside_is_put_back", || async {
        let network = network();
        let (one, two, three) = (Pod::start(), Pod::start(), Pod::start());
        network.set_up(one.request()).await.expect("set up");
        let reaches = |pod: &Pod| pod.run("ping -c1 -W5 10.77.0.1") && pod.run("ping -c1 -W5 fdc7:1cce:7::1");
        assert!(reaches(&one));
        let removed = || Command::new("ip").args(["link", "del", "cricket0"]).status().expect("ip runs").success();
        assert!(removed() && !one.run("ping -c1 -W1 10.77.0.1"));
        let second = network.set_up(two.request()).await.expect("the bridge is made anew");
        assert!(reaches(&two) && reaches(&one), "the pod that lived is at the new bridge");
        assert!(one.run(&format!("ping -c1 -W5 {}", second.addresses[0])));

        // Status notices too, and nobody's rules are missed for longer.
        assert!(removed());
        nft(&["flush", "ruleset"]);
        assert_eq!(network.missing().await, None);
        assert!(reaches(&one) && reaches(&two));
        assert!(nft(&["list", "table", "inet", "cricket"]).contains("masquerade"));
        assert!(nft(&["list", "table", "bridge", "cricket"]).contains(&second.node_interface));
        network.set_up(three.request()).await.expect("set up");
        assert!(reaches(&three));
    });
}

#[test]
fn ranges_that_cannot_be_pods_are_refused_and_those_that_were_serve_the_pods_that_have_them() {
    let name = "ranges_that_cannot_be_pods_are_refused_and_those_that_were_serve_the_pods_that_have_them";
    inside(name, || async {
        let uplink = "ip link add up0 mtu 1380 type bridge && ip addr add 198.51.100.1/24 dev up0 && ip link set up0 up \
            && ip route add default via 198.51.100.2 && ip route add 10.96.0.0/16 via 198.51.100.3";
        assert!(Command::new("sh").args(["-c", uplink]).status().expect("sh runs").success());
        let network = network();
        let early = Pod::start();
        let had = network.set_up(early.request()).await.expect("set up");
        let change = |text: &str| {
            let cidrs = text.split(',').map(|range| range.parse().expect("a range")).collect();
            let network = network.clone();
            async move { network.change_ranges(cidrs).await.map_err(|error| error.to_string()) }
        };
        let addresses = || {
            let output = Command::new("ip").args(["-o", "addr", "show", "dev", "cricket0", "scope", "global"]).output();
            String::from_utf8(output.expect("ip runs").stdout).expect("text")
        };
        let before = (addresses(), nft(&["list", "ruleset"]));
        for (range, named) in [
            ("127.0.0.0/8", "loopback"),
            ("224.0.0.0/4", "multicast"),
            ("0.0.0.0/1", "127.0.0.0/8"),
            ("255.255.255.0/24", "reserved"),
            ("fe80::/64", "link-local"),
            ("198.51.100.0/25", "up0"),
            ("198.51.0.0/16", "up0"),
            ("10.96.0.0/15", "10.96.0.0/16"),
        ] {
            let refused = change(range).await.expect_err(range);
            assert!(refused.contains(named) && refused.contains(range), "{range}: {refused}");
        }
        assert_eq!((addresses(), nft(&["list", "ruleset"])), before, "nothing was changed");

        // Addresses that nothing else stands at: the way to the rest of the world is not lo.
        change("192.0.2.0/24").await.expect("a range");
        let one = Pod::start();
        network.set_up(one.request()).await.expect("set up");
        assert!(one.run("ip -o link show eth0 | grep -q 'mtu 1[0-9]* '"), "{}", links());
        network.tear_down(&one.id).await.expect("torn down");

        // A part of what is reached by way of a gateway.
        change("10.96.7.0/24,fdc7:1cce:8::/64").await.expect("ranges");
        assert!(!addresses().contains("192.0.2.1"), "{}", addresses());
        assert!(addresses().contains("10.77.0.1/16") && addresses().contains("10.96.7.1/24"), "{}", addresses());
        let rules = nft(&["list", "table", "inet", "cricket"]);
        for range in ["10.77.0.0/16", "10.96.7.0/24", "fdc7:1cce:7::/64", "fdc7:1cce:8::/64"] {
            assert_eq!(rules.matches(&format!("saddr {range}")).count(), 2, "{range}: {rules}");
        }
        assert!(early.run("ping -c1 -W5 10.77.0.1"));
        // The daemon is started anew, with the kubelet's ranges; then the last pod of the earlier ones ends.
        let network = named("cricket", &["10.96.7.0/24", "fdc7:1cce:8::/64"]);
        network.adopt(&early.id, &had, Vec::new()).await.expect("adopted");
        network.settle(Vec::new()).await.expect("settled");
        assert!(early.run("ping -c1 -W5 10.77.0.1"));
        assert!(nft(&["list", "table", "inet", "cricket"]).contains("saddr 10.77.0.0/16"));
        network.tear_down(&early.id).await.expect("torn down");
        assert!(!addresses().contains("10.77.0.1") && addresses().contains("10.96.7.1/24"), "{}", addresses());
        assert!(!nft(&["list", "table", "inet", "cricket"]).contains("10.77.0.0"));
    });
}

#[test]
fn a_pod_with_users_of_its_own_changes_nothing_of_the_nodes_network_by_the_other_end_of_its_own() {
    let name = "a_pod_with_users_of_its_own_changes_nothing_of_the_nodes_network_by_the_other_end_of_its_own";
    inside(name, || async {
        let network = network();
        let pod = Pod::start_with(&["--user", "--map-root-user"]);
        network.set_up(pod.request()).await.expect("set up");
        let target = pod.holder.id().to_string();
        let perl = ["--", "perl", "-e", include_str!("inside/remove_of_peer.pl"), "cricket0"];
        let asked = Command::new("nsenter")
            .args(["--preserve-credentials", "--target", &target, "--user", "--net"])
            .args(perl)
            .output();
        let answer = String::from_utf8(asked.expect("nsenter runs").stdout).expect("text");
        assert_eq!(answer.trim(), libc::EACCES.to_string(), "with all capabilities in its own namespaces");
        assert!(links().contains("cricket0"));
        assert!(pod.run("ping -c1 -W5 10.77.0.1"));
    });
}
