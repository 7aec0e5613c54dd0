//! The daemon is killed at random moments while pods come and go, as kubelets make them: what was asked is asked again
//! until it is answered. Nothing is lost, doubled or leaked. CI has [`KILLS`] and [`RESIDENTS`]; `scripts/soak` more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cricket::proto::cri;
use futures_util::future::join_all;
use tonic::{Code, Response, Status};

use crate::daemon_killed::assert_whole;
use crate::image_soak::chance;
use crate::node::{
    Node, Runtime, archive_of, container, create_request, layer_of, log_lines, patience, pod, processes_with,
    runtime_at,
};
use crate::pod_network::networked;

/// Unless CRICKET_SOAK_KILLS says otherwise, or CRICKET_SOAK_SECONDS says how long.
const KILLS: usize = 8;
/// Pods that stay and write lines: unless CRICKET_SOAK_PODS says otherwise.
const RESIDENTS: usize = 4;
/// Kubelets, so to say: each makes and removes pods one after the other.
const CALLERS: usize = 3;
/// Between a start and the next kill at most.
const LONGEST_LIFE_MILLISECONDS: u64 = 700;
/// Of residents.
const LINE_EVERY_MILLISECONDS: &str = "20";
/// Of a pod that comes and goes.
const LINES: usize = 200;
const EXIT_CODE: i32 = 7;
const PAUSE: Duration = Duration::from_millis(20);

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Somebody who speaks to whichever daemon is there.
#[derive(Clone)]
struct Caller {
    socket: PathBuf,
    is_over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
}

impl Caller {
    /// The answer, however many daemons die over it.
    async fn insist<T>(&self, what: &str, mut call: impl AsyncFnMut(Runtime) -> Result<Response<T>, Status>) -> T {
        let deadline = Instant::now() + patience();
        loop {
            let answer = match runtime_at(&self.socket).await {
                Some(runtime) => call(runtime).await,
                None => Err(Status::unavailable("nobody listens")),
            };
            match answer {
                Ok(answer) => return answer.into_inner(),
                // The connection's end, by the names that the library has for it.
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                    assert!(Instant::now() < deadline, "{what}: in vain for {:?}: {status}", patience());
                }
                Err(status) => panic!("{what}: {status}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn run_pod(&self, config: &cri::PodSandboxConfig) -> String {
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        self.insist("RunPodSandbox", async |mut r| r.run_pod_sandbox(request.clone()).await).await.pod_sandbox_id
    }

    async fn start(&self, pod: &str, config: &cri::PodSandboxConfig, name: &str, command: &[&str]) -> String {
        let request = create_request(pod, container(name, command), config);
        let created = self.insist("CreateContainer", async |mut r| r.create_container(request.clone()).await).await;
        let start = cri::StartContainerRequest { container_id: created.container_id.clone() };
        self.insist("StartContainer", async |mut r| r.start_container(start.clone()).await).await;
        created.container_id
    }

    async fn status(&self, container_id: &str) -> cri::ContainerStatus {
        let request = cri::ContainerStatusRequest { container_id: container_id.to_owned(), verbose: false };
        let answer = self.insist("ContainerStatus", async |mut r| r.container_status(request.clone()).await).await;
        answer.status.expect("a status")
    }

    async fn exit_code(&self, container_id: &str) -> i32 {
        let deadline = Instant::now() + patience();
        loop {
            let status = self.status(container_id).await;
            if status.state() == cri::ContainerState::ContainerExited {
                return status.exit_code;
            }
            assert!(Instant::now() < deadline, "it does not end: {status:?}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn remove_pod(&self, pod: &str) {
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.insist("StopPodSandbox", async |mut r| r.stop_pod_sandbox(stop.clone()).await).await;
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.insist("RemovePodSandbox", async |mut r| r.remove_pod_sandbox(remove.clone()).await).await;
    }

    /// One pod's life, looked at all the way.
    async fn come_and_go(&self, config: &cri::PodSandboxConfig) {
        let pod = self.run_pod(config).await;
        let name = &config.metadata.as_ref().expect("it has a name").name;
        let writer = self.start(&pod, config, "writer", &["demo", "lines", &LINES.to_string(), "1", name]).await;
        let waiter = self.start(&pod, config, "waiter", &["demo", "sleep", "inf", name]).await;
        let leaver = self.start(&pod, config, "leaver", &["demo", "exit", &EXIT_CODE.to_string(), "0", name]).await;
        let cmd = ["demo", "echo", name].map(str::to_owned).to_vec();
        let exec = cri::ExecSyncRequest { container_id: waiter, cmd, timeout: 30 };
        let said = self.insist("ExecSync", async |mut r| r.exec_sync(exec.clone()).await).await;
        assert_eq!(said.stdout, format!("{name}\n").into_bytes());
        assert_eq!(self.exit_code(&writer).await, 0, "{name}");
        assert_eq!(self.exit_code(&leaver).await, EXIT_CODE, "{name}");
        let log = PathBuf::from(&config.log_directory).join("writer.log");
        let lines = log_lines(&log);
        assert_eq!(lines.len(), LINES, "{name}");
        assert_whole(&lines);
        self.remove_pod(&pod).await;
        std::fs::remove_dir_all(&config.log_directory).expect("a directory of ours");
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Every other one on a network of its own.
    async fn work(self, who: usize, models: [cri::PodSandboxConfig; 2]) {
        for turn in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let mut config = models[turn % models.len()].clone();
            let metadata = config.metadata.as_mut().expect("it has a name");
            metadata.name = format!("guest-{who}-{turn}");
            metadata.uid = format!("uid-{who}-{turn}");
            config.log_directory = format!("{}-{turn}", config.log_directory);
            std::fs::create_dir_all(&config.log_directory).expect("a directory of ours");
            self.come_and_go(&config).await;
        }
    }
}

/// An image comes and goes too; who is killed over it is asked again.
async fn churn(load: tokio::process::Command, remove: tokio::process::Command, is_over: Arc<AtomicBool>) {
    let mut commands = [load, remove];
    for turn in 0.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        commands[turn % 2].output().await.expect("our client");
    }
}

/// Kills the daemon again and again; answers how long the next ones took to be ready.
async fn kill(node: &mut Node) -> Vec<Duration> {
    let until = number("CRICKET_SOAK_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds as u64));
    let kills = number("CRICKET_SOAK_KILLS").unwrap_or(KILLS);
    let mut starts = Vec::new();
    while until.map_or(starts.len() < kills, |until| Instant::now() < until) {
        // Chance is the point here.
        tokio::time::sleep(Duration::from_millis(chance(starts.len() as u64) % LONGEST_LIFE_MILLISECONDS)).await;
        node.kill_daemon();
        let start = Instant::now();
        node.serve();
        node.wait_until_ready().await;
        starts.push(start.elapsed());
    }
    starts
}

fn median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

#[tokio::test]
async fn nothing_is_lost_while_the_daemon_is_killed_again_and_again() {
    let mut node = Node::start().await;
    node.load_demo().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let caller = Caller { socket: node.socket(), is_over: Arc::clone(&is_over), served: Arc::default() };
    let mut residents = BTreeMap::new();
    for name in (0..number("CRICKET_SOAK_PODS").unwrap_or(RESIDENTS)).map(|at| format!("resident-{at}.")) {
        let config = pod(&node, &name);
        let id = caller.run_pod(&config).await;
        let command = ["demo", "lines", "0", LINE_EVERY_MILLISECONDS, &name];
        let container = caller.start(&id, &config, "main", &command).await;
        residents.insert(name.clone(), (id, container, processes_with(&name)));
    }

    let archive = node.dir.join("churn.tar");
    let layer = layer_of("file", 1, 1 << 20);
    std::fs::write(&archive, archive_of("churn.test/churn:1", &[layer])).expect("a file of ours");
    let load = node.cricket(["image", "load"].map(PathBuf::from).into_iter().chain([archive])).into();
    let remove = node.cricket(["image", "remove", "churn.test/churn:1"]).into();
    let work: Vec<_> = (0..CALLERS)
        .map(|who| {
            let models = [pod(&node, &format!("guest-{who}")), networked(&node, &format!("guest-{who}-net"))];
            caller.clone().work(who, models)
        })
        .collect();
    let killer = async {
        let starts = kill(&mut node).await;
        is_over.store(true, Ordering::Relaxed);
        starts
    };
    let (starts, (), _) = tokio::join!(killer, churn(load, remove, Arc::clone(&is_over)), join_all(work));

    let kills = starts.len();
    let (usual, longest) = median(starts);
    let kib = resident_kib(node.daemon_pid());
    let served = caller.served.load(Ordering::Relaxed);
    eprintln!("{kills} kills, {served} pods came and went; ready after {usual:?}, at most {longest:?}; {kib} KiB");
    assert!(served > 0, "no pod was looked at");
    let said = std::fs::read_to_string(node.daemon_log()).expect("a log");
    assert!(!said.contains("panicked"), "{said}");
    only_residents_are_left(&node, &residents).await;
    for (name, (id, container, processes)) in &residents {
        assert_eq!(caller.status(container).await.state(), cri::ContainerState::ContainerRunning, "{name}");
        assert_eq!(&processes_with(name), processes, "{name} was not restarted");
        caller.remove_pod(id).await;
        assert_whole(&log_lines(&node.log_of(name, "main")));
    }
    node.stop_and_account().await;
}

type Resident = (String, String, Vec<u32>);

/// In the daemon's lists, on disk, at run time, and in the node's network.
async fn only_residents_are_left(node: &Node, residents: &BTreeMap<String, Resident>) {
    let ours: BTreeSet<String> = residents.values().map(|(id, ..)| id.clone()).collect();
    let pods = node.runtime().await.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.expect("listed");
    assert_eq!(pods.into_inner().items.into_iter().map(|pod| pod.id).collect::<BTreeSet<_>>(), ours);
    let containers = node.runtime().await.list_containers(cri::ListContainersRequest::default()).await.expect("listed");
    assert_eq!(containers.into_inner().containers.len(), residents.len());
    for directory in [node.root().join("pods"), node.dir.join("run/pods")] {
        let entries = std::fs::read_dir(&directory).expect("a directory of ours").flatten();
        let names: BTreeSet<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ours, "{}", directory.display());
    }
    let enter = node.enter();
    let links =
        crate::node::text(&crate::node::succeed(&mut enter(&["ip", "-o", "link", "show", "type", "veth"])).stdout);
    assert_eq!(links, "", "guests' interfaces");
}
