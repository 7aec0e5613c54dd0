//! CNI in real network namespaces, as root of a user namespace of the test's own: Debian's plugins (package
//! containernetworking-plugins), and shell scripts for what well-behaved plugins do not show.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cricket::network::cni::CniOptions;
use cricket::network::{Network, NetworkOptions, PodNetwork, PodRequest};
use cricket::proto::cri;
use cricket::store::PodId;
use cricket::sys::process::ProcessId;
use serde_json::{Value, json};

/// Set in the copy of the test that runs inside the namespaces.
const INSIDE: &str = "CRICKET_TEST_INSIDE";
/// Where Debian puts its plugins.
const DEBIANS: &str = "/usr/lib/cni";
/// A machine that is busy is given this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` inside namespaces of its own; outside it runs the test `name` again inside.
fn inside<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Site) -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        return runtime.block_on(test(Site::new(name)));
    }
    let exe = std::env::current_exe().expect("the test's own path");
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--"])
        .arg(exe)
        .args(["--exact", name, "--nocapture"])
        // Its result is this test's, and is counted once.
        .stdout(Stdio::null())
        .env(INSIDE, "1")
        .status()
        .expect("unshare runs");
    assert!(status.success(), "{name} inside the namespaces: {status}");
}

/// Directories of one test.
struct Site {
    dir: PathBuf,
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Site {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("cricket-cni-{name}-{}", std::process::id()));
        for below in ["net.d", "bin", "heard"] {
            fs::create_dir_all(dir.join(below)).expect("a directory");
        }
        Self { dir }
    }

    /// A daemon's network; a second one is what a restarted daemon has.
    fn network(&self, patience: Duration) -> Network {
        let cni = CniOptions {
            config_dir: self.dir.join("net.d"),
            plugin_dirs: vec![self.dir.join("bin"), DEBIANS.into()],
            attachments: self.dir.join("kept"),
            patience,
        };
        let node = File::open("/proc/self/ns/net").expect("a namespace").into();
        let cidrs = vec!["10.77.0.0/16".parse().expect("a range")];
        Network::new(NetworkOptions {
            node,
            name: "cricket".to_owned(),
            cidrs,
            cidrs_of_kubelet: true,
            mtu: None,
            forwarded: false,
            cni,
        })
        .expect("a network")
    }

    fn configure(&self, list: &Value) {
        fs::write(self.dir.join("net.d/10-test.conflist"), list.to_string()).expect("written");
    }

    fn unconfigure(&self) {
        fs::remove_file(self.dir.join("net.d/10-test.conflist")).expect("removed");
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.dir.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    /// A plugin that writes down what it hears and answers as the specification has it.
    fn listener(&self, version: &str) {
        let heard = self.dir.join("heard");
        let result = r#"{"cniVersion":"0.3.1","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],
            "ips":[{"version":"4","interface":0,"address":"10.9.0.5/24"},{"version":"6","address":"fd09::5/64"}]}"#;
        let body = format!(
            "n=$(printf %04d $(ls {heard} | wc -l)); cat >{heard}/$n.$CNI_COMMAND.json; env >{heard}/$n.$CNI_COMMAND.env
             case $CNI_COMMAND in
             VERSION) echo '{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"{version}\"]}}';;
             ADD) echo '{result}';;
             esac",
            heard = heard.display()
        );
        self.script("listener", &body);
    }

    /// What the listener heard with `command`: configurations and environments.
    fn heard(&self, command: &str) -> Vec<(Value, String)> {
        let mut names: Vec<PathBuf> =
            fs::read_dir(self.dir.join("heard")).expect("listed").flatten().map(|e| e.path()).collect();
        names.sort();
        let ending = format!("{command}.json");
        let of_command = names.into_iter().filter(|path| path.to_string_lossy().ends_with(&ending));
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).expect("heard");
            let environment = fs::read_to_string(path.with_extension("env")).expect("heard");
            (serde_json::from_str(&text).expect("JSON"), environment)
        };
        of_command.map(read).collect()
    }

    fn kept(&self) -> usize {
        let Ok(entries) = fs::read_dir(self.dir.join("kept")) else { return 0 };
        entries.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "json")).count()
    }

    /// Addresses that host-local has given out.
    fn leases(&self) -> Vec<String> {
        let Ok(networks) = fs::read_dir(self.dir.join("leases")) else { return Vec::new() };
        let files = networks.flatten().flat_map(|network| fs::read_dir(network.path()).expect("listed").flatten());
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("10.") || name.starts_with("fd")).collect()
    }

    /// Debian's host-local, which keeps its leases here.
    fn ipam(&self) -> Value {
        json!({
            "type": "host-local",
            "dataDir": self.dir.join("leases"),
            "ranges": [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd66::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        })
    }

    fn bridge(&self, others: &[Value]) -> Value {
        let bridge = json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
            "hairpinMode": true, "ipam": self.ipam() });
        let plugins: Vec<&Value> = std::iter::once(&bridge).chain(others).collect();
        json!({ "cniVersion": "1.0.0", "name": "debian", "plugins": plugins })
    }
}

/// A process that holds a network namespace.
struct Pod {
    id: PodId,
    holder: Child,
    config: cri::PodSandboxConfig,
}

impl Pod {
    fn start(name: &str) -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "ip link set lo up; echo ready; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut ready = [0; 6];
        std::io::Read::read_exact(holder.stdout.as_mut().expect("piped"), &mut ready).expect("ready");
        let (name, uid, namespace) = (name.to_owned(), "u".to_owned(), "ns".to_owned());
        let metadata = Some(cri::PodSandboxMetadata { name, uid, namespace, attempt: 0 });
        let config = cri::PodSandboxConfig { metadata, ..Default::default() };
        Self { id: PodId::random(), holder, config }
    }

    fn namespace(&self) -> OwnedFd {
        File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("a namespace").into()
    }

    fn process(&self) -> ProcessId {
        ProcessId::of(self.holder.id() as i32).expect("it runs")
    }

    fn request(&self) -> PodRequest {
        let (id, config) = (self.id.clone(), self.config.clone());
        PodRequest { id, namespace: self.namespace(), holder: self.process(), config, cgroup: None, ports: Vec::new() }
    }

    fn run(&self, command: &str) -> bool {
        let target = format!("--net=/proc/{}/ns/net", self.holder.id());
        Command::new("nsenter").args([&target, "--", "sh", "-c", command]).status().expect("nsenter runs").success()
    }

    fn kill(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.kill();
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program is there");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Links but for bridges, which plugins leave for the next pod.
fn links() -> Vec<String> {
    let names = output("ip", &["-o", "link"]);
    let names = names.lines().filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned()));
    names.filter(|name| name != "cni0" && name != "cricket0").collect()
}

/// Whether a rule of the node speaks of an address of the pod.
fn rules_name(network: &PodNetwork) -> bool {
    let rules = output("nft", &["list", "ruleset"]);
    network.addresses.iter().any(|address| {
        let address = address.to_string();
        rules.split(|c: char| !(c.is_ascii_hexdigit() || c == '.' || c == ':')).any(|word| word == address)
    })
}

fn reaches(from: &Pod, to: &PodNetwork) {
    for address in &to.addresses {
        assert!(from.run(&format!("ping -c1 -W5 {address}")), "{address} is not reached");
    }
}

#[test]
fn debians_plugins_connect_pods_in_both_families_and_leave_nothing() {
    inside("debians_plugins_connect_pods_in_both_families_and_leave_nothing", |site| async move {
        let before = links();
        let others = [
            json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
            json!({ "type": "firewall", "backend": "iptables" }),
            json!({ "type": "tuning", "mtu": 1400 }),
        ];
        site.configure(&site.bridge(&others));
        let network = site.network(PATIENCE);
        assert_eq!(network.missing().await, None);
        let (mut one, mut two) = (Pod::start("one"), Pod::start("two"));
        one.config.port_mappings =
            vec![cri::PortMapping { protocol: 0, container_port: 80, host_port: 8080, host_ip: String::new() }];
        let first = network.set_up(one.request()).await.expect("set up");
        let second = network.set_up(two.request()).await.expect("set up");
        assert_eq!(
            (first.cni.as_deref(), first.interface.as_str(), first.addresses.len()),
            (Some("debian"), "eth0", 2)
        );
        assert!(first.node_interface.starts_with("veth"), "{first:?}");
        reaches(&one, &second);
        reaches(&two, &first);
        // Not the first: the portmap of Debian 12 looks for rules of IPv4 among those of IPv6.
        network.check(&two.id).await.expect("as it was made");
        assert!(one.run("ip -o link show eth0 | grep -q 'mtu 1400'"));
        assert!(rules_name(&first) && rules_name(&second));
        assert_eq!((site.leases().len(), site.kept()), (4, 2));
        assert!(two.run("ip -4 addr flush dev eth0"));
        let error = network.check(&two.id).await.expect_err("it has lost its address").to_string();
        assert!(error.contains("CHECK"), "{error}");
        // As it was: of addresses that the link lacks, this bridge forgets the rules.
        assert!(two.run(&format!("ip addr add {}/24 dev eth0", second.addresses[0])));
        network.tear_down(&one.id).await.expect("torn down");
        network.tear_down(&one.id).await.expect("twice");
        assert!(!rules_name(&first) && rules_name(&second));
        // Killed from outside: its namespace is held, so nothing of it stays either.
        two.kill();
        network.tear_down(&two.id).await.expect("torn down");
        assert!(!rules_name(&second));
        assert_eq!((site.leases(), site.kept(), links()), (vec![], 0, before));
    });
}

#[test]
fn debians_bandwidth_and_loopback_do_their_part_in_a_chain() {
    inside("debians_bandwidth_and_loopback_do_their_part_in_a_chain", |site| async move {
        let before = links();
        let others =
            [json!({ "type": "loopback" }), json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } })];
        site.configure(&site.bridge(&others));
        let network = site.network(PATIENCE);
        assert_eq!(network.missing().await, None);
        let mut pod = Pod::start("slow");
        for direction in ["ingress", "egress"] {
            pod.config.annotations.insert(format!("kubernetes.io/{direction}-bandwidth"), "8M".to_owned());
        }
        assert!(pod.run("ip link set lo down"));
        let made = network.set_up(pod.request()).await.expect("set up");
        assert!(pod.run("ping -c1 -W5 127.0.0.1"), "loopback is up");
        // Of what the pod gets by its interface's peer, of what it sends by a device to which that is led.
        let shapers = output("tc", &["qdisc", "show"]);
        let shaped = shapers.lines().filter(|line| line.contains("qdisc tbf") && line.contains("rate 8Mbit"));
        assert_eq!(shaped.count(), 2, "{shapers}");
        assert!(shapers.contains(&format!("qdisc tbf 1: dev {}", made.node_interface)), "{shapers}");
        network.tear_down(&pod.id).await.expect("torn down");
        assert_eq!((site.leases(), site.kept(), links()), (vec![], 0, before));
    });
}

#[test]
fn a_configuration_of_kindnets_shape_makes_a_point_to_point_link() {
    inside("a_configuration_of_kindnets_shape_makes_a_point_to_point_link", |site| async move {
        site.configure(&json!({ "cniVersion": "0.3.1", "name": "kindnet", "plugins": [
            { "type": "ptp", "ipMasq": false, "ipam": site.ipam(), "mtu": 1500 },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ]}));
        assert!(
            Command::new("sh").args(["-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]).status().expect("sh").success()
        );
        let network = site.network(PATIENCE);
        let (one, two) = (Pod::start("one"), Pod::start("two"));
        let first = network.set_up(one.request()).await.expect("set up");
        let second = network.set_up(two.request()).await.expect("set up");
        assert!(one.run(&format!("ping -c1 -W5 {}", second.addresses[0])));
        assert_eq!((first.addresses.len(), site.leases().len()), (2, 4));
        for pod in [&one, &two] {
            network.tear_down(&pod.id).await.expect("torn down");
        }
        assert_eq!((site.leases(), site.kept()), (vec![], 0));
    });
}

#[test]
fn a_configuration_of_flannels_shape_delegates_to_the_bridge() {
    inside("a_configuration_of_flannels_shape_delegates_to_the_bridge", |site| async move {
        // As flannel's plugin does: its configuration holds the delegate's, and its agent wrote down the subnet.
        let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.244.3.0/24" }]], "dataDir": site.dir.join("leases") });
        let delegate = format!(".delegate + {{name, cniVersion, type: \"bridge\", ipam: {ipam}}}");
        site.script(
            "flannel",
            &format!("[ $CNI_COMMAND != VERSION ] || exec {DEBIANS}/bridge\njq '{delegate}' | exec {DEBIANS}/bridge"),
        );
        site.configure(&json!({ "name": "cbr0", "cniVersion": "0.3.1", "plugins": [
            { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ]}));
        let network = site.network(PATIENCE);
        assert_eq!(network.missing().await, None);
        let pod = Pod::start("one");
        let made = network.set_up(pod.request()).await.expect("set up");
        assert!(made.addresses[0].to_string().starts_with("10.244.3."));
        assert!(pod.run("ping -c1 -W5 10.244.3.1"));
        network.tear_down(&pod.id).await.expect("torn down");
        assert_eq!((site.leases(), site.kept()), (vec![], 0));
    });
}

#[test]
fn a_later_daemon_disconnects_a_pod_whose_namespace_and_configuration_are_gone() {
    inside("a_later_daemon_disconnects_a_pod_whose_namespace_and_configuration_are_gone", |site| async move {
        site.configure(&site.bridge(&[json!({ "type": "portmap", "capabilities": { "portMappings": true } })]));
        let mut pods = [Pod::start("one"), Pod::start("two")];
        let daemon = site.network(PATIENCE);
        for pod in &pods {
            daemon.set_up(pod.request()).await.expect("set up");
        }
        drop(daemon);
        pods[0].kill();
        site.configure(&json!({ "cniVersion": "1.0.0", "name": "other", "plugins": [{ "type": "nothing" }] }));
        let daemon = site.network(PATIENCE);
        daemon.tear_down(&pods[0].id).await.expect("torn down");
        assert_eq!((site.leases().len(), site.kept()), (2, 1));
        // Of the second nobody knows any more: its record was never written.
        daemon.collect_garbage(&HashSet::new()).await;
        assert_eq!((site.leases(), site.kept()), (vec![], 0));
    });
}

#[test]
fn of_many_pods_a_third_killed_and_a_third_without_a_link_no_lease_port_link_or_result_is_left() {
    let name = "of_many_pods_a_third_killed_and_a_third_without_a_link_no_lease_port_link_or_result_is_left";
    inside(name, |site| async move {
        let before = links();
        site.configure(&site.bridge(&[json!({ "type": "portmap", "capabilities": { "portMappings": true } })]));
        let daemon = site.network(PATIENCE);
        // By hand with 200; each pod takes a quarter of a second.
        let count = std::env::var("CRICKET_TEST_PODS").map_or(6, |text| text.parse().expect("a number"));
        let mut addresses = HashSet::new();
        let mut pods = Vec::new();
        for index in 0..count {
            let mut pod = Pod::start(&format!("pod-{index}"));
            let host_port = 10_000 + index;
            let port = cri::PortMapping { protocol: 0, container_port: 80, host_port, host_ip: String::new() };
            pod.config.port_mappings = vec![port];
            let made = daemon.set_up(pod.request()).await.expect("set up");
            assert!(made.addresses.iter().all(|address| addresses.insert(*address)), "{made:?}");
            pods.push((pod, made));
        }
        let rules = || output("nft", &["list", "ruleset"]).matches("dport 10").count();
        assert!(rules() >= pods.len() && site.leases().len() == 2 * pods.len());
        // Chains and rules of a pod bear its id, or a name that the plugins make of it.
        let ids: Vec<String> = pods.iter().map(|(pod, _)| pod.id.to_string()).collect();
        let of_pods = || {
            let all = output("nft", &["list", "ruleset"]);
            let named = ids.iter().filter(|id| all.contains(id.as_str())).count();
            named + all.matches("chain CNI-DN-").count() + all.matches("10.66.0.").count()
        };
        assert!(of_pods() >= 2 * pods.len(), "{}", output("nft", &["list", "ruleset"]));
        // Of the last third the next daemon hears only that they are no more: it finds no namespace.
        let (mut now, mut later) = (Vec::new(), Vec::new());
        for (index, (mut pod, made)) in pods.into_iter().enumerate() {
            match index % 3 {
                0 => pod.kill(),
                1 => drop(output("ip", &["link", "del", &made.node_interface])),
                _ => {
                    later.push(pod);
                    continue;
                }
            }
            now.push(pod);
        }
        for pod in &now {
            daemon.tear_down(&pod.id).await.expect("torn down");
        }
        drop(daemon);
        later.iter_mut().for_each(Pod::kill);
        let daemon = site.network(PATIENCE);
        daemon.collect_garbage(&HashSet::new()).await;
        assert_eq!((site.leases(), site.kept(), rules(), of_pods()), (vec![], 0, 0, 0));
        // The kernel takes a link with its namespace, a moment later.
        let deadline = Instant::now() + PATIENCE;
        while links() != before {
            assert!(Instant::now() < deadline, "{:?}", links());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_change_of_the_configuration_holds_for_the_next_pod_and_each_goes_as_it_came() {
    inside("a_change_of_the_configuration_holds_for_the_next_pod_and_each_goes_as_it_came", |site| async move {
        let network = site.network(PATIENCE);
        let pods: Vec<Pod> = ["a", "b", "c"].map(Pod::start).into();
        let before = links();
        assert_eq!(network.missing().await, None);
        let builtin = network.set_up(pods[0].request()).await.expect("built in");
        site.configure(&json!({ "cniVersion": "1.0.0", "name": "n", "plugins": [{ "type": "not-installed" }] }));
        let missing = network.missing().await.expect("not ready");
        assert!(missing.contains("not-installed") && missing.contains("/usr/lib/cni"), "{missing}");
        let refused = network.set_up(pods[1].request()).await.expect_err("no plugin").to_string();
        assert!(refused.contains("not-installed"), "{refused}");
        assert_eq!(site.kept(), 0, "where no plugin ran there is nothing to take away");
        site.configure(&json!({ "cniVersion": "1.1.0", "name": "n", "plugins": [{ "type": "bridge" }] }));
        let missing = network.missing().await.expect("not ready");
        assert!(missing.contains("does not speak version 1.1.0"), "{missing}");
        site.configure(&site.bridge(&[]));
        assert_eq!(network.missing().await, None);
        let cni = network.set_up(pods[1].request()).await.expect("CNI");
        site.unconfigure();
        let again = network.set_up(pods[2].request()).await.expect("built in");
        let makers = [&builtin, &cni, &again].map(|made| made.cni.as_deref());
        assert_eq!(makers, [None, Some("debian"), None]);
        for pod in &pods {
            network.tear_down(&pod.id).await.expect("torn down");
        }
        assert_eq!((site.leases(), site.kept(), links()), (vec![], 0, before));
    });
}

#[test]
fn plugins_hear_what_the_specification_has_them_hear() {
    inside("plugins_hear_what_the_specification_has_them_hear", |site| async move {
        site.listener("1.1.0");
        site.configure(&json!({ "cniVersion": "1.1.0", "name": "n", "plugins": [
            { "type": "listener", "mine": 7 },
            { "type": "listener", "capabilities": { "portMappings": true, "ipRanges": true, "dns": false, "bandwidth": true,
                "aliases": true, "cgroupPath": true } },
        ]}));
        let network = site.network(PATIENCE);
        assert_eq!(network.missing().await, None);
        assert_eq!((site.heard("VERSION").len(), site.heard("STATUS").len()), (2, 2));
        let mut pod = Pod::start("web");
        pod.config.port_mappings =
            vec![cri::PortMapping { protocol: 1, container_port: 53, host_port: 5353, host_ip: String::new() }];
        pod.config.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "10M".to_owned());
        pod.config.hostname = "web-0".to_owned();
        pod.config.dns_config = Some(cri::DnsConfig { servers: vec!["192.0.2.53".to_owned()], ..Default::default() });
        let cgroup_parent = "/kubepods/pod7".to_owned();
        pod.config.linux = Some(cri::LinuxPodSandboxConfig { cgroup_parent, ..Default::default() });
        let made = network.set_up(pod.request()).await.expect("set up");
        let addresses: Vec<String> = made.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.9.0.5", "fd09::5"]);
        let restarted = site.network(PATIENCE);
        restarted.adopt_cni(&pod.id, pod.namespace(), pod.process());
        restarted.collect_garbage(&HashSet::from([pod.id.clone()])).await;
        restarted.tear_down(&pod.id).await.expect("torn down");

        let (add, del) = (site.heard("ADD"), site.heard("DEL"));
        assert_eq!((add[0].0["mine"].clone(), add[0].0.get("prevResult")), (json!(7), None));
        assert_eq!(add[0].0.get("runtimeConfig"), None);
        // The first answered 0.3.1; the list is of 1.1.0, which does not tell families.
        let previous = &add[1].0["prevResult"];
        assert_eq!((&previous["cniVersion"], previous["ips"][0].get("version")), (&json!("1.1.0"), None));
        let told = &add[1].0["runtimeConfig"];
        assert_eq!(told["portMappings"][0]["hostPort"], 5353);
        assert_eq!(told["ipRanges"], json!([[{ "subnet": "10.77.0.0/16" }]]));
        assert_eq!((told.get("dns"), &told["bandwidth"]["egressRate"]), (None, &json!(10_000_000)));
        assert_eq!(told["aliases"], json!({ "n": ["web", "web-0"] }));
        assert_eq!(told["cgroupPath"], "/kubepods/pod7");
        let holder = format!("CNI_NETNS=/proc/{}/ns/net\n", pod.holder.id());
        let container = format!("CNI_CONTAINERID={}\n", pod.id);
        for text in [holder.as_str(), &container, "CNI_IFNAME=eth0\n", "K8S_POD_NAME=web;", "IgnoreUnknown=1;"] {
            assert!(add[0].1.contains(text), "{text} in {}", add[0].1);
        }
        assert_eq!(del.len(), 2);
        assert_eq!(del[0].0["runtimeConfig"], add[1].0["runtimeConfig"], "the last plugin is asked first");
        assert_eq!(del[0].0["prevResult"], del[1].0["prevResult"]);
        assert!(del[0].1.contains("CNI_NETNS=/proc/self/fd/9\n"));
        let (gc, check) = (site.heard("GC"), site.heard("CHECK"));
        let valid = json!([{ "containerID": pod.id.as_str(), "ifname": "eth0" }]);
        assert_eq!((gc.len(), &gc[0].0["cni.dev/valid-attachments"]), (2, &valid));
        assert_eq!((check.len(), &check[0].0["prevResult"]["ips"][0]["address"]), (2, &json!("10.9.0.5/24")));
        assert!(check[0].1.contains(&holder));
    });
}

#[test]
fn a_pod_that_a_hostile_plugin_was_to_connect_is_told_why_and_leaves_nothing() {
    inside("a_pod_that_a_hostile_plugin_was_to_connect_is_told_why_and_leaves_nothing", |site| async move {
        let before = links();
        // It behaves at DEL, as one that is only broken would.
        for (body, expected) in [
            ("sleep 1000", "did not end within 2s"),
            ("sleep 1000 & wait", "did not end within 2s"),
            ("head -c 1000000000 /dev/zero", "printed more than"),
            ("echo rubbish", "not JSON"),
            ("exit 0", "printed no result"),
            ("sleep 1000 & exit 0", "printed no result"),
            (
                r#"echo '{"cniVersion":"1.0.0","code":100,"msg":"no luck","details":"none at all"}'"#,
                "no luck: none at all (code 100)",
            ),
            (r#"echo '{"cniVersion":"1.0.0","ips":[]}'"#, "no address"),
            (r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"ten"}]}'"#, "for an address"),
            ("kill -9 $$", "signal: 9"),
        ] {
            site.script("hostile", &format!("[ $CNI_COMMAND != DEL ] || exit 0\n{body}"));
            site.configure(&site.bridge(&[json!({ "type": "hostile" })]));
            let network = site.network(Duration::from_secs(2));
            let pod = Pod::start("one");
            let started = Instant::now();
            let error = network.set_up(pod.request()).await.expect_err(body).to_string();
            assert!(error.contains(expected), "{body}: {error}");
            network.tear_down(&pod.id).await.expect("torn down");
            assert!(started.elapsed() < PATIENCE, "{body}");
            assert_eq!((site.leases(), site.kept(), links()), (vec![], 0, before.clone()), "{body}");
        }
    });
}

#[test]
fn what_a_plugin_does_not_delete_is_kept_until_it_does() {
    inside("what_a_plugin_does_not_delete_is_kept_until_it_does", |site| async move {
        let stuck = Path::new("/tmp").join(format!("cricket-cni-stuck-{}", std::process::id()));
        fs::write(&stuck, "").expect("written");
        site.script(
            "sticky",
            &format!("[ $CNI_COMMAND = DEL ] || exec cat >&2\n[ ! -e {} ] || exit 1", stuck.display()),
        );
        site.configure(&site.bridge(&[json!({ "type": "sticky" })]));
        let network = site.network(PATIENCE);
        let pod = Pod::start("one");
        network.set_up(pod.request()).await.expect_err("it prints no result");
        let error = network.tear_down(&pod.id).await.expect_err("it fails").to_string();
        assert!(error.contains("sticky") && error.contains("DEL"), "{error}");
        // The others were asked all the same.
        assert_eq!((site.leases(), site.kept()), (vec![], 1));
        fs::remove_file(stuck).expect("removed");
        network.tear_down(&pod.id).await.expect("torn down");
        assert_eq!(site.kept(), 0);
    });
}

#[test]
fn a_damaged_record_is_set_aside_and_its_pod_goes() {
    inside("a_damaged_record_is_set_aside_and_its_pod_goes", |site| async move {
        site.configure(&site.bridge(&[]));
        let (damaged, later, whole) = (Pod::start("damaged"), Pod::start("later"), Pod::start("whole"));
        let network = site.network(PATIENCE);
        for pod in [&damaged, &later, &whole] {
            network.set_up(pod.request()).await.expect("set up");
        }
        let record = |pod: &Pod| site.dir.join("kept").join(format!("{}.json", pod.id));
        fs::write(record(&damaged), "{\"version\": 1, \"po").expect("damaged");
        let text = fs::read_to_string(record(&later)).expect("a record");
        let newer = text.replacen("\"version\": 1", "\"version\": 1000", 1);
        assert_ne!(text, newer);
        fs::write(record(&later), &newer).expect("written");

        network.tear_down(&damaged.id).await.expect("torn down");
        let aside = record(&damaged).with_extension("json.unreadable");
        assert!(aside.exists() && !record(&damaged).exists());
        // What is configured now knew the pod: its address is free.
        assert_eq!((site.leases().len(), site.kept()), (2 * 2, 2));
        let error = network.tear_down(&later.id).await.expect_err("it is of another release").to_string();
        assert!(error.contains("a newer cricket wrote it"), "{error}");
        assert_eq!(fs::read_to_string(record(&later)).expect("untouched"), newer);
        // Another network's configuration, or none, does not keep the next one either.
        fs::write(record(&whole), "").expect("damaged");
        site.unconfigure();
        network.tear_down(&whole.id).await.expect("torn down");
        fs::write(record(&later), text).expect("written");
        network.tear_down(&later.id).await.expect("torn down");
        assert_eq!(site.kept(), 0);
    });
}
