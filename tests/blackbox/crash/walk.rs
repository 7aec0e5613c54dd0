//! One pod's life, from its image's arrival to its image's removal, with a point armed; and what must hold after each
//! step.

use std::path::Path;
use std::time::Duration;

use cricket::proto::cri;
use cricket::sys::crash::Point;
use tonic::Status;

use super::{is_of_a_pod, kills_a_pod, writes_records};
use crate::node::{DEMO, Node, container, create_request, eventually, pod, processes_with};

/// A call is repeated so often, as a kubelet does.
const ATTEMPTS: usize = 3;
/// What a stopped container may use to end.
const GRACE_SECONDS: i64 = 10;
const SHARES: i64 = 512;
const GLANCE: Duration = Duration::from_millis(20);
/// For a process to be seen dead.
const GLANCES: usize = 10;

type Outcome<T> = Result<T, String>;

/// See the module.
pub struct Walk<'a> {
    node: &'a mut Node,
    point: Option<(Point, usize)>,
    action: &'a str,
    name: String,
    /// Its supervisor was killed: it only ends.
    lost: bool,
}

impl<'a> Walk<'a> {
    pub async fn new(node: &'a mut Node, point: Option<(Point, usize)>, action: &'a str) -> Self {
        let (place, turn) = point.map_or(("nowhere", 1), |(point, turn)| (point.name(), turn));
        let name = format!("at-{}-{turn}-{action}", place.replace('.', "-"));
        if let Some((point, turn)) = point {
            node.arm(point, action, turn);
        }
        Self { node, point, action, name, lost: false }
    }

    /// The walk; what went wrong.
    pub async fn run(mut self) -> Outcome<()> {
        self.repeat("LoadImages", async |node| node.try_to_load_demo().await).await?;
        self.whole_life().await?;
        self.short_life().await?;
        let image = Some(cri::ImageSpec { image: DEMO.to_owned(), ..Default::default() });
        let request = cri::RemoveImageRequest { image };
        self.repeat("RemoveImage", async |node| node.images().await.remove_image(request.clone()).await).await?;
        if self.point.is_some() && self.node.disarm() {
            return Err("the point was never reached".to_owned());
        }
        self.nothing_left().await
    }

    /// Every call, in the order of a kubelet.
    async fn whole_life(&mut self) -> Outcome<()> {
        let config = pod(self.node, &self.name);
        let pod_id = self.run_pod(&config).await?;
        let main = self.create(&pod_id, &config, "main").await?;
        if let Some(main) = &main {
            self.start(main, "main").await?;
            self.change(main).await?;
            self.stop(main, "main").await?;
            self.remove(main).await?;
        }
        if let Some(other) = self.create(&pod_id, &config, "other").await? {
            self.start(&other, "other").await?;
        }
        self.end_pod(&pod_id, true).await
    }

    /// Removed as it stands, with a container that was never started.
    async fn short_life(&mut self) -> Outcome<()> {
        self.lost = false;
        self.name.push_str("-again");
        let config = pod(self.node, &self.name);
        let pod_id = self.run_pod(&config).await?;
        self.create(&pod_id, &config, "main").await?;
        self.end_pod(&pod_id, false).await
    }

    async fn run_pod(&mut self, config: &cri::PodSandboxConfig) -> Outcome<String> {
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let answer = self
            .repeat("RunPodSandbox", async |node| node.runtime().await.run_pod_sandbox(request.clone()).await)
            .await;
        let pods = self.pods().await;
        let [pod] = pods.as_slice() else { return Err(format!("one pod is expected, not {pods:?} ({answer:?})")) };
        if let Some(answer) = answer?
            && answer.get_ref().pod_sandbox_id != pod.id
        {
            return Err(format!("{} was answered, and {} is there", answer.get_ref().pod_sandbox_id, pod.id));
        }
        if pod.state() != cri::PodSandboxState::SandboxReady && !self.lost {
            return Err(format!("the pod is not ready: {pod:?}"));
        }
        Ok(pod.id.clone())
    }

    /// None: the pod is lost.
    async fn create(&mut self, pod: &str, pod_config: &cri::PodSandboxConfig, name: &str) -> Outcome<Option<String>> {
        let marker = format!("{}-{name}", self.name);
        let request = create_request(pod, container(name, &["demo", "sleep", "inf", &marker]), pod_config);
        let answer = self
            .repeat("CreateContainer", async |node| node.runtime().await.create_container(request.clone()).await)
            .await?;
        let containers = self.containers().await;
        match (answer, containers.as_slice()) {
            (Some(answer), [one]) if one.id == answer.get_ref().container_id => Ok(Some(one.id.clone())),
            (None, [] | [_]) if self.lost => Ok(None),
            (answer, others) => Err(format!("CreateContainer: {answer:?} was answered, and there is {others:?}")),
        }
    }

    async fn start(&mut self, id: &str, name: &str) -> Outcome<()> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        self.repeat("StartContainer", async |node| node.runtime().await.start_container(request.clone()).await).await?;
        if self.lost {
            return Ok(());
        }
        let marker = format!("{}-{name}", self.name);
        let state = self.node.container_status(id).await.state();
        if state != cri::ContainerState::ContainerRunning {
            return Err(format!("{name} was started, and is {state:?}"));
        }
        eventually("its program runs", || (!processes_with(&marker).is_empty()).then_some(())).await;
        match processes_with(&marker).len() {
            1 => Ok(()),
            count => Err(format!("{name} runs {count} times")),
        }
    }

    /// What can be done with one that runs.
    async fn change(&mut self, id: &str) -> Outcome<()> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(cri::LinuxContainerResources { cpu_shares: SHARES, ..Default::default() }),
            ..Default::default()
        };
        self.repeat("UpdateContainerResources", async |node| {
            node.runtime().await.update_container_resources(request.clone()).await
        })
        .await?;
        let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.repeat("ReopenContainerLog", async |node| {
            node.runtime().await.reopen_container_log(request.clone()).await
        })
        .await?;
        let said =
            self.repeat("ExecSync", async |node| node.exec(id, &["demo", "echo", "fine"], GRACE_SECONDS).await).await?;
        if self.lost {
            return Ok(());
        }
        let linux = self.node.container_status(id).await.resources.and_then(|resources| resources.linux);
        match (linux.map(|linux| linux.cpu_shares), said.map(|said| said.stdout)) {
            (Some(SHARES), Some(said)) if said == b"fine\n" => Ok(()),
            other => Err(format!("limits and a command came to {other:?}")),
        }
    }

    async fn stop(&mut self, id: &str, name: &str) -> Outcome<()> {
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: GRACE_SECONDS };
        self.must("StopContainer", async |node| node.runtime().await.stop_container(request.clone()).await).await?;
        let status = self.node.container_status(id).await;
        let marker = format!("{}-{name}", self.name);
        if status.state() != cri::ContainerState::ContainerExited || !processes_with(&marker).is_empty() {
            return Err(format!("{name} was stopped, and is {:?}: {:?}", status.state(), processes_with(&marker)));
        }
        Ok(())
    }

    async fn remove(&mut self, id: &str) -> Outcome<()> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        self.must("RemoveContainer", async |node| node.runtime().await.remove_container(request.clone()).await).await?;
        match self.containers().await.as_slice() {
            [] => Ok(()),
            left => Err(format!("it was removed, and there is {left:?}")),
        }
    }

    async fn end_pod(&mut self, id: &str, stop_first: bool) -> Outcome<()> {
        let pod_sandbox_id = id.to_owned();
        if stop_first {
            let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
            self.must("StopPodSandbox", async |node| node.runtime().await.stop_pod_sandbox(request.clone()).await)
                .await?;
            let state = self.node.pod_status(id).await.state();
            if state != cri::PodSandboxState::SandboxNotready || !processes_with(&self.name).is_empty() {
                return Err(format!("the pod was stopped, and is {state:?}: {:?}", processes_with(&self.name)));
            }
        }
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id };
        self.must("RemovePodSandbox", async |node| node.runtime().await.remove_pod_sandbox(request.clone()).await)
            .await?;
        match (self.pods().await.as_slice(), self.containers().await.as_slice()) {
            ([], []) => Ok(()),
            left => Err(format!("the pod was removed, and there is {left:?}")),
        }
    }

    async fn pods(&self) -> Vec<cri::PodSandbox> {
        let request = cri::ListPodSandboxRequest::default();
        self.node.runtime().await.list_pod_sandbox(request).await.expect("ListPodSandbox").into_inner().items
    }

    async fn containers(&self) -> Vec<cri::Container> {
        let request = cri::ListContainersRequest::default();
        self.node.runtime().await.list_containers(request).await.expect("ListContainers").into_inner().containers
    }

    /// As [`Self::repeat`], of what is owed to a lost pod too.
    async fn must<T>(&mut self, what: &str, call: impl AsyncFn(&Node) -> Result<T, Status>) -> Outcome<T> {
        self.repeat(what, call).await?.ok_or_else(|| format!("{what} of a lost pod failed"))
    }

    /// The call, again after each error, by a daemon that lives. None: it failed, as it may, for the pod is lost.
    async fn repeat<T>(&mut self, what: &str, call: impl AsyncFn(&Node) -> Result<T, Status>) -> Outcome<Option<T>> {
        let mut errors = Vec::new();
        for _ in 0..ATTEMPTS {
            let armed = self.point.filter(|_| !self.node.has_fired());
            let answer = call(self.node).await;
            if let Some((point, _)) = armed.filter(|_| self.node.has_fired()) {
                self.settle(point).await;
            }
            match answer {
                Ok(answer) => return Ok(Some(answer)),
                Err(status) => errors.push(format!("{:?}: {}", status.code(), status.message())),
            }
            // Done already, in a call whose answer was lost: a kubelet looks at the state and goes on.
            if errors.len() > 1 && matches!(what, "StartContainer") && errors[1].contains("runs already") {
                return Ok(None);
            }
            self.is_legal(what)?;
        }
        match self.lost {
            true => Ok(None),
            false => Err(format!("{what} does not get through: {}", errors.join("; "))),
        }
    }

    /// After the point was reached: the daemon lives, and what it lost is known.
    async fn settle(&mut self, point: Point) {
        self.lost |= kills_a_pod(point, self.action) || (self.action == "panic" && writes_records(point));
        if self.action == "kill" && writes_records(point) {
            // Daemons and supervisors write records.
            for _ in 0..GLANCES {
                if self.node.is_dead() {
                    break;
                }
                tokio::time::sleep(GLANCE).await;
            }
            self.lost |= !self.node.is_dead();
        }
        let of_daemon = !is_of_a_pod(point) && point != Point::TemplateFork && !writes_records(point);
        if self.action == "kill" && (of_daemon || self.node.is_dead()) {
            self.node.wait_for_death().await;
            self.node.serve();
            self.node.wait_until_ready().await;
        }
    }

    fn is_legal(&self, what: &str) -> Outcome<()> {
        let half_made = entries(&self.node.root().join("unreadable"));
        match half_made.is_empty() {
            true => Ok(()),
            false => Err(format!("{what} left records that cannot be read: {half_made:?}")),
        }
    }

    /// Of all that a walk made.
    async fn nothing_left(&self) -> Outcome<()> {
        let root = self.node.root();
        let places =
            ["pods", "images/images", "images/layers", "images/snapshots", "images/spool", "cni", "unreadable"];
        let on_disk = || -> Vec<String> {
            let places = places.iter().map(|place| root.join(place)).chain([self.node.dir.join("run/pods")]);
            places.flat_map(|place| entries(&place)).collect()
        };
        let left =
            || on_disk().into_iter().chain(processes_with(&self.name).into_iter().map(|pid| format!("process {pid}")));
        for _ in 0..10 * GLANCES {
            if left().next().is_none() {
                return Ok(());
            }
            tokio::time::sleep(GLANCE).await;
        }
        Err(format!("left behind: {:?}", left().collect::<Vec<_>>()))
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

impl Node {
    /// After a walk that went wrong, so that the next one tells of its own faults only.
    pub async fn clean_up(&mut self) {
        self.disarm();
        let _ = self.cricket(["stop", "--pods"]).output();
        self.wait_for_death().await;
        let root = self.root();
        let mut remove = std::process::Command::new("unshare");
        remove.args(["--map-root-user", "--map-auto", "--", "rm", "-rf"]).arg(&root).arg(self.dir.join("run"));
        remove.output().expect("unshare");
        std::fs::create_dir_all(self.dir.join("run")).expect("a directory of ours");
        self.serve();
        self.wait_until_ready().await;
    }
}
