//! A kubelet in a node: its configuration, its process, and what it says of its pods.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::manifests;
use crate::node::{Node, cgroups, patience, provision, succeed, text};
use crate::user_namespaces::ids_of;

/// Its own server, in the node's network namespace.
const PORT: u16 = 10_250;
/// What the pods' names end with.
pub const HOST: &str = "standalone";
/// Around those of its pods, by either driver.
const TOP_CGROUPS: [&str; 2] = ["kubepods", "kubepods.slice"];
const ADDRESS: &str = "127.0.0.1";
/// What pods with users of their own are given: two times as many as one has.
pub const FIRST_ID_OF_PODS: u64 = manifests::USERS_OF_POD;
pub const IDS_OF_PODS: u64 = 2 * manifests::USERS_OF_POD;

/// See the module. Dropping it ends it.
pub struct Kubelet {
    node: NodePaths,
    process: Child,
}

/// What of a [`Node`] is used while the test has the node itself.
struct NodePaths {
    dir: PathBuf,
    enter: Box<dyn Fn(&[&str]) -> Command>,
}

/// What the kubelet says of a pod.
#[derive(Debug, Clone)]
pub struct State {
    /// What its cgroup is named by.
    pub uid: String,
    pub address: String,
    pub init_containers_succeeded: bool,
    containers: Vec<ContainerState>,
}

#[derive(Debug, Clone, Default)]
pub struct ContainerState {
    name: String,
    pub id: String,
    pub is_ready: bool,
    /// CrashLoopBackOff.
    pub is_held_back: bool,
    pub restarts: u64,
    /// Why it ended the last time.
    pub last_reason: String,
}

impl State {
    /// As it is; one that the kubelet has not seen yet has nothing.
    pub fn container(&self, name: &str) -> ContainerState {
        self.containers.iter().find(|container| container.name == name).cloned().unwrap_or_default()
    }
}

impl Kubelet {
    /// Starts it in the node, with writable directories where it insists on its own.
    pub fn start(node: &Node) -> Self {
        let paths = NodePaths { dir: node.dir.join("kubelet"), enter: node.enter() };
        for name in ["manifests", "pods", "root", "certificates", "plugins"] {
            std::fs::create_dir_all(paths.dir.join(name)).expect("a directory of ours");
        }
        std::fs::create_dir_all(node.dir.join("shared")).expect("a directory of ours");
        prepare(node, &paths);
        let configuration = configuration(&paths, &node.socket().display().to_string());
        std::fs::write(paths.dir.join("kubelet.json"), configuration.to_string()).expect("written");
        let process = run(&paths);
        Self { node: paths, process }
    }

    /// Ends it, and starts it again.
    pub fn restart(&mut self) {
        self.stop();
        self.process = run(&self.node);
    }

    /// Ends it; its pods run on.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        self.process.wait().expect("our child");
    }

    /// Ends it for good: pods' cgroups are gone then, and it keeps those around them.
    pub fn end(&mut self) {
        self.stop();
        let Some(base) = cgroups::base() else { return };
        // systemd removes its own slices, as it sees them empty.
        TOP_CGROUPS.iter().for_each(|top| cgroups::remove(&base.join(top)));
    }

    /// Has a static pod run.
    pub fn place(&self, manifest: &Value) {
        // Whole at once, or the kubelet may read half of it.
        let made = self.node.dir.join("manifest");
        std::fs::write(&made, manifest.to_string()).expect("written");
        std::fs::rename(made, self.node.dir.join("manifests/pod.json")).expect("renamed");
    }

    /// Has it ended.
    pub fn take_away(&self) {
        std::fs::remove_file(self.node.dir.join("manifests/pod.json")).expect("removed");
    }

    /// What it says of its pods; none while it does not answer.
    pub fn pods(&self) -> Vec<State> {
        let output = self.curl(&[&self.url("/pods")]).output().expect("curl");
        let Ok(list) = serde_json::from_slice::<Value>(&output.stdout) else { return Vec::new() };
        list["items"].as_array().map(|pods| pods.iter().map(state).collect()).unwrap_or_default()
    }

    /// Of its own server.
    pub fn url(&self, path: &str) -> String {
        format!("https://{ADDRESS}:{PORT}{path}")
    }

    /// From inside the node.
    pub fn curl(&self, arguments: &[&str]) -> Command {
        (self.node.enter)(
            &[&["curl", "-sS", "--insecure", "--globoff", "--max-time", &patience().as_secs().to_string()], arguments]
                .concat(),
        )
    }

    /// A streaming session as kubectl has them.
    pub fn session(&self, kind: &str, path: &str, more: &[&str]) -> Command {
        let program = provision("clients/session").display().to_string();
        let mut command = (self.node.enter)(&[&[program.as_str(), kind, &self.url(path)], more].concat());
        command.stderr(Stdio::inherit());
        command
    }

    /// The text of a container's log files, the oldest first.
    pub fn log_files(&self, container: &str) -> Vec<String> {
        let find = format!("find {}/pods -path '*/{container}/0.log*' | sort", self.node.dir.display());
        let found = text(&succeed(&mut (self.node.enter)(&["sh", "-c", &find])).stdout);
        let mut files: Vec<&str> = found.lines().filter(|file| !file.ends_with(".gz")).collect();
        // `0.log` is the newest, the others end with their date.
        files.sort_by_key(|file| (file.ends_with("0.log"), *file));
        let texts: Result<Vec<String>, _> = files.iter().map(std::fs::read_to_string).collect();
        match texts {
            // The kubelet has moved or packed one since: they have other names now.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.log_files(container),
            texts => texts.expect("logs"),
        }
    }
}

/// Directories that it wants outside of its own: in a made node hidden behind others, while root's are the machine's.
fn prepare(node: &Node, paths: &NodePaths) {
    let hide = if rustix::process::geteuid().is_root() {
        "mkdir -p $dir"
    } else {
        "mount -t tmpfs tmpfs ${dir%/*} && mkdir $dir"
    };
    let script = format!("for dir in /var/log/containers /var/lib/kubelet; do {hide}; done");
    succeed(&mut (paths.enter)(&["sh", "-c", &script]));
    if !rustix::process::geteuid().is_root() && ids_of(node) >= FIRST_ID_OF_PODS + IDS_OF_PODS {
        give_ids(paths);
    }
}

/// A kubelet asks whose ids it may give to pods that have users of their own: those of the user `kubelet` (getsubids).
/// Without him it takes any of the machine's, which an ordinary user's node has not got.
fn give_ids(node: &NodePaths) {
    let dir = node.dir.display();
    let script = format!(
        "set -e; cd {dir}; cp /etc/passwd passwd; echo kubelet:x:64000:64000::/:/bin/false >>passwd
         echo kubelet:{FIRST_ID_OF_PODS}:{IDS_OF_PODS} >ids
         mount --bind passwd /etc/passwd; mount --bind ids /etc/subuid; mount --bind ids /etc/subgid"
    );
    succeed(&mut (node.enter)(&["sh", "-c", &script]));
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.node.dir.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the kubelet's last words:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(node: &NodePaths) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(node.dir.join("log")).expect("a log");
    let (program, dir) = (provision("clients/kubelet").display().to_string(), node.dir.display().to_string());
    let mut command = (node.enter)(&[
        &program,
        &format!("--config={dir}/kubelet.json"),
        &format!("--root-dir={dir}/root"),
        &format!("--cert-dir={dir}/certificates"),
        &format!("--hostname-override={HOST}"),
        // Else it waits for a resolver to know the name.
        &format!("--node-ip={ADDRESS}"),
    ]);
    let copy = log.try_clone().expect("a descriptor");
    command.stdin(Stdio::null()).stdout(copy).stderr(log).spawn().expect("a kubelet")
}

/// Pods have cgroups of the kubelet's where controllers are delegated (`scripts/vm test kubelet`).
fn configuration(node: &NodePaths, socket: &str) -> Value {
    let dir = node.dir.display();
    let has_cgroups = cgroups::base().is_some();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "port": PORT,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupsPerQOS": has_cgroups,
        // As many as it has ids for.
        "maxPods": IDS_OF_PODS / manifests::USERS_OF_POD,
        "enforceNodeAllocatable": [if has_cgroups { "pods" } else { "none" }],
        "failCgroupV1": false,
        "failSwapOn": false,
        "featureGates": { "KubeletInUserNamespace": true },
        "containerRuntimeEndpoint": format!("unix://{socket}"),
        "staticPodPath": format!("{dir}/manifests"),
        "podLogsDir": format!("{dir}/pods"),
        "volumePluginDir": format!("{dir}/plugins"),
        "fileCheckFrequency": "1s",
        "syncFrequency": "1s",
        "containerLogMaxSize": "20Ki",
        "containerLogMaxFiles": 5,
        "containerLogMonitorInterval": "3s",
        "evictionHard": { "memory.available": "1Mi", "nodefs.available": "0.1%", "imagefs.available": "0.1%" },
        "imageGCHighThresholdPercent": 100,
        "clusterDNS": ["192.0.2.53"],
    })
}

fn state(pod: &Value) -> State {
    let status = &pod["status"];
    let list = |name: &str| status[name].as_array().cloned().unwrap_or_default();
    State {
        uid: pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
        address: status["podIP"].as_str().unwrap_or_default().to_owned(),
        init_containers_succeeded: !list("initContainerStatuses").is_empty()
            && list("initContainerStatuses").iter().all(|init| init["state"]["terminated"]["exitCode"] == 0),
        containers: list("containerStatuses").iter().map(container_state).collect(),
    }
}

fn container_state(status: &Value) -> ContainerState {
    ContainerState {
        name: status["name"].as_str().unwrap_or_default().to_owned(),
        id: status["containerID"].as_str().unwrap_or_default().to_owned(),
        is_ready: status["ready"] == true,
        is_held_back: status["state"]["waiting"]["reason"] == "CrashLoopBackOff",
        restarts: status["restartCount"].as_u64().unwrap_or_default(),
        last_reason: status["lastState"]["terminated"]["reason"].as_str().unwrap_or_default().to_owned(),
    }
}
