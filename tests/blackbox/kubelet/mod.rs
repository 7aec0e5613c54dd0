//! A real kubelet, standalone and rootless, with cricket as its runtime: static pods through their whole life.
//!
//! `scripts/test kubelet` builds the kubelet and runs these; elsewhere they are skipped.

mod kubelet;
mod manifests;

use cricket::proto::cri;
use std::io::Write;
use std::process::Stdio;

use crate::node::{Node, cgroups, eventually, eventually_async, succeed, text};

use crate::user_namespaces::ids_of;
use kubelet::{FIRST_ID_OF_PODS, IDS_OF_PODS, Kubelet, State};
use manifests::{CRASHER, GREEDY, IDLE, LIMIT_CPU, PAGE, POD, SERVER, TALKER, USERS, USERS_OF_POD, USERS_POD, WRITER};

#[tokio::test]
#[ignore = "needs a kubelet: scripts/test kubelet"]
async fn a_kubelet_runs_static_pods_and_neither_restart_restarts_them() {
    let mut node = Node::start().await;
    node.load("busybox");
    let mut kubelet = Kubelet::start(&node);
    kubelet.place(&manifests::pod(&node));

    let running = kubelet.until("the pod is ready", |pod| pod.container(SERVER).is_ready.then(|| pod.clone())).await;
    assert!(running.init_containers_succeeded, "{running:?}");
    kubelet.until("the one that crashes is held back", |pod| pod.container(CRASHER).is_held_back.then_some(())).await;
    answers(&kubelet).await;
    sessions(&kubelet);
    logs_are_rotated(&kubelet).await;

    // Neither restart is seen by the pod.
    let before = running.container(SERVER).id;
    node.kill_daemon();
    node.serve();
    node.wait_until_ready().await;
    kubelet.until("the daemon is found again", |pod| pod.container(SERVER).is_ready.then_some(())).await;
    kubelet.restart();
    let after = kubelet.until("the kubelet is there again", |pod| pod.container(SERVER).is_ready.then(|| pod.clone()));
    let after = after.await;
    let server = after.container(SERVER);
    assert_eq!((server.id, server.restarts), (before, 0));
    assert_eq!(after.container(WRITER).restarts, 0);

    kubelet.take_away();
    let farewell = node.dir.join("shared/farewell");
    eventually_async("the hook before the end has run", async || farewell.exists().then_some(())).await;
    eventually_async("the pod is gone", async || kubelet.pods().is_empty().then_some(())).await;
    users_of_its_own(&kubelet, &node).await;
    kubelet.stop();
    // What it had not removed yet.
    let left = node.runtime().await.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
    for pod in left.expect("ListPodSandbox").into_inner().items {
        node.remove_pod(&pod.id).await;
    }
    kubelet.end();
    node.stop_and_account().await;
}

#[tokio::test]
#[ignore = "needs a kubelet: scripts/vm test kubelet"]
async fn a_kubelets_pods_are_in_its_cgroups_and_its_limits_are_the_kernels() {
    if cgroups::base_or_skip("a kubelet's cgroups").is_none() {
        return;
    }
    limits_with("cgroupfs").await;
    // systemd makes slices for a root alone: an ordinary user's kubelet has no way to his manager.
    if rustix::process::geteuid().is_root() {
        limits_with("systemd").await;
    }
}

async fn limits_with(driver: &str) {
    let base = cgroups::base().expect("looked at before");
    let node = Node::prepare().await;
    std::fs::write(node.config(), format!("cgroup_driver = \"{driver}\"\n")).expect("written");
    let node = node.begin().await;
    node.load("busybox");
    let mut kubelet = Kubelet::start(&node);
    // Guaranteed and burstable.
    for (request, class) in [(LIMIT_CPU, ""), ("100m", "burstable")] {
        kubelet.place(&manifests::limited_pod(request));
        let killed = |pod: &State| (pod.container(GREEDY).last_reason == "OOMKilled").then(|| pod.clone());
        let pod = kubelet.until("the greedy one is killed", killed).await;
        let idle = pod.container(IDLE);
        assert!(idle.restarts == 0 && !idle.last_reason.contains("OOM"), "{pod:?}");
        let id = idle.id.rsplit('/').next().expect("its id").to_owned();
        let cgroup = base.join(pod_cgroup(driver, class, &pod.uid));
        let leaf = if driver == "systemd" { format!("cri-cricket-{id}.scope") } else { id.clone() };
        assert_eq!(cgroups::of(&base, &id), cgroup.join(leaf));
        let own = cgroups::of(&base, &id);
        for (at, file, value) in [
            (&own, "memory.max", "67108864"),
            (&own, "cpu.max", "20000 100000"),
            (&cgroup, "memory.max", "134217728"),
            (&cgroup, "cpu.max", "40000 100000"),
        ] {
            assert_eq!(cgroups::read(at, file), value, "{file} of {}", at.display());
        }
        println!("{driver} {class}: {}", own.display());
        kubelet.take_away();
        eventually_async("the pod is gone", async || kubelet.pods().is_empty().then_some(())).await;
        eventually("its cgroup is gone", || (!cgroup.exists()).then_some(())).await;
    }
    kubelet.end();
    node.stop_and_account().await;
}

/// Where a kubelet has a pod's cgroup, from the top of the node.
fn pod_cgroup(driver: &str, class: &str, uid: &str) -> String {
    let classes = [class].into_iter().filter(|class| !class.is_empty());
    if driver == "cgroupfs" {
        let parts: Vec<String> = classes.map(|class| format!("{class}/")).collect();
        return format!("kubepods/{}pod{uid}", parts.concat());
    }
    let mut name = "kubepods".to_owned();
    let mut path = "kubepods.slice".to_owned();
    for part in classes.map(str::to_owned).chain([format!("pod{}", uid.replace('-', "_"))]) {
        name = format!("{name}-{part}");
        path = format!("{path}/{name}.slice");
    }
    path
}

/// The kubelet's HTTP interface: pods' addresses, commands, logs.
async fn answers(kubelet: &Kubelet) {
    assert_eq!(kubelet.get(&format!("http://{}:8080/index.html", kubelet.pod().address)).trim(), PAGE);
    let said = kubelet.post(&format!("/run/default/{POD}/{SERVER}?cmd=cat%20/info/labels"));
    assert_eq!(said.trim(), "app=\"web\"");
    let log = kubelet.get_own(&format!("/containerLogs/default/{POD}/{CRASHER}?previous=true"));
    assert_eq!(log.trim(), "about to crash");
}

/// Exec, attach and port-forward as kubectl does them, through the kubelet.
fn sessions(kubelet: &Kubelet) {
    let path = format!("/exec/default/{POD}/{SERVER}?input=1&output=1&error=1&command=sh&command=-c");
    for way in ["exec", "exec-websocket"] {
        let script = encoded("read word; echo out $word; echo err >&2; exit 4");
        let mut session = kubelet.session(way, &format!("{path}&command={script}"), &[]);
        let mut session =
            session.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("session");
        session.stdin.take().expect("its input").write_all(b"word\n").expect("written");
        let ended = session.wait_with_output().expect("its end");
        let said = (text(&ended.stdout), text(&ended.stderr));
        assert_eq!((ended.status.code(), said), (Some(4), ("out word\n".into(), "err\n".into())), "{way}");
    }
    let mut attach =
        kubelet.session("attach", &format!("/attach/default/{POD}/{TALKER}?input=1&output=1&error=1"), &[]);
    let mut attach = attach.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("session");
    attach.stdin.take().expect("its input").write_all(b"hello\n").expect("written");
    assert_eq!(text(&attach.wait_with_output().expect("its end").stdout), "you said hello\n");
    let mut forward = kubelet.session("port-forward", &format!("/portForward/default/{POD}"), &["8080"]);
    let mut forward = forward.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("session");
    let request = b"GET /index.html HTTP/1.0\r\n\r\n";
    forward.stdin.take().expect("its input").write_all(request).expect("written");
    let answer = text(&forward.wait_with_output().expect("its end").stdout);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.trim_end().ends_with(PAGE), "{answer}");
}

/// `hostUsers: false`: the kubelet gives the pod ids that the node's own users have not got.
async fn users_of_its_own(kubelet: &Kubelet, node: &Node) {
    let has = ids_of(node);
    let needs = FIRST_ID_OF_PODS + IDS_OF_PODS;
    if has < needs {
        println!("skipped: pods with users of their own need {needs} ids in a kubelet's node, and this one has {has}");
        return;
    }
    kubelet.place(&manifests::users_pod());
    kubelet.until("the pod with its own users runs", |pod| pod.container(USERS).is_ready.then_some(())).await;
    let path = format!("/run/default/{USERS_POD}/{USERS}?cmd={}", encoded("cat /proc/self/uid_map /mine/owner"));
    let said = kubelet.post(&path);
    let words: Vec<&str> = said.split_whitespace().collect();
    let outside: u64 = words.get(1).and_then(|word| word.parse().ok()).expect("a map");
    assert!(outside >= USERS_OF_POD, "{said}");
    assert_eq!((words[0], words[2], words[3]), ("0", USERS_OF_POD.to_string().as_str(), "0:0"), "{said}");
    kubelet.take_away();
    eventually_async("the pod is gone", async || kubelet.pods().is_empty().then_some(())).await;
}

/// For a URL's query.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// The kubelet renames a log that grew and has it opened anew: no line is lost between the two files.
async fn logs_are_rotated(kubelet: &Kubelet) {
    let numbers = eventually_async("the log is rotated", async || {
        let files = kubelet.log_files(WRITER);
        (files.len() > 1).then(|| files.iter().flat_map(|file| manifests::numbers(file)).collect::<Vec<_>>())
    });
    let numbers = numbers.await;
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are missing: {numbers:?}");
}

impl Kubelet {
    async fn until<T>(&self, what: &str, mut look: impl FnMut(&State) -> Option<T>) -> T {
        eventually_async(what, async || self.pods().first().and_then(&mut look)).await
    }

    fn pod(&self) -> State {
        self.pods().into_iter().next().expect("the pod")
    }

    fn get(&self, url: &str) -> String {
        text(&succeed(&mut self.curl(&[url])).stdout)
    }

    fn get_own(&self, path: &str) -> String {
        self.get(&self.url(path))
    }

    fn post(&self, path: &str) -> String {
        text(&succeed(&mut self.curl(&["-X", "POST", &self.url(path)])).stdout)
    }
}
