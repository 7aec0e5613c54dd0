//! The way of a log: a disk that does not answer holds up the logs that are on it and nothing else, and nothing of them
//! is lost; a flood is slowed; logs that are renamed under a flood lose and tear nothing.
//!
//! The disk is a FUSE file system whose server is stopped (SIGSTOP), in a mount namespace of the test's own. Where this
//! user may not open /dev/fuse, it is who writes to the disk that is stopped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cricket::proto::cri;
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon_killed::assert_whole;
use crate::disk_full::Disk;
use crate::node::{LogLine, Node, container, eventually, eventually_async, log_lines, pod};

/// Of a container that writes as fast as it can.
const FLOOD_LINES: usize = 100_000;
const ROTATIONS: usize = 5;
/// A call that waits for no disk, on a busy machine.
const PROMPT: Duration = Duration::from_secs(8);

/// A place for logs that answers as long as it is let.
struct SlowDisk {
    place: PathBuf,
    /// The server, with what is below it.
    fuse: Option<(Child, Disk, PathBuf)>,
    stopped: Vec<u32>,
}

impl SlowDisk {
    async fn mount(node: &Node) -> Self {
        let place = node.logs().join("slow");
        std::fs::create_dir_all(&place).expect("a directory of ours");
        let fuse = match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
            Ok(_) => Some(Self::serve(node, &place).await),
            Err(_) => None,
        };
        Self { place, fuse, stopped: Vec::new() }
    }

    async fn serve(node: &Node, place: &Path) -> (Child, Disk, PathBuf) {
        let store = node.dir.join("slow-disk");
        let below = Disk::mount_with(&store, "size=128m");
        below.run("mkdir \"$0/lower\" \"$0/upper\" \"$0/work\"", &store);
        let enter = below.enter();
        let dir = store.display();
        let options = format!("writeback=0,lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/work");
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]).args(["fuse-overlayfs", "-f", "-o", &options]).arg(place);
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("nsenter");
        let is_mounted = || below.run("stat -f -c %T \"$0\"", place).contains("fuse").then_some(());
        eventually("it is mounted", is_mounted).await;
        (server, below, store)
    }

    fn enter(&self) -> Vec<String> {
        self.fuse.as_ref().map(|(_, disk, _)| disk.enter()).unwrap_or_default()
    }

    /// For the logs of these pods, at least.
    fn stop(&mut self, node: &Node, pods: &[&str]) {
        self.stopped = self.fuse.as_ref().map_or_else(|| scribes(node, pods), |(server, ..)| vec![server.id()]);
        assert!(!self.stopped.is_empty());
        self.signal(Signal::STOP);
    }

    fn signal(&self, signal: Signal) {
        for pid in self.stopped.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// What is in a log, up to its last whole line; read where nobody is asked who may not answer.
    fn lines(&self, node: &Node, name: &str) -> Vec<LogLine> {
        let text = match &self.fuse {
            Some((_, below, store)) => below.run(&format!("cat \"$0/upper/{name}\""), store),
            None => std::fs::read_to_string(self.place.join(name)).expect("a log"),
        };
        let copy = node.dir.join("copy.log");
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        std::fs::write(&copy, whole).expect("a file of ours");
        log_lines(&copy)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        if let Some((server, ..)) = &mut self.fuse {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Who writes the logs of these pods.
fn scribes(node: &Node, pods: &[&str]) -> Vec<u32> {
    let supervisors = pods.iter().map(|pod| node.supervisor_of(pod));
    let children = supervisors.flat_map(|pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        text.split_whitespace().map(|pid| pid.parse().expect("a process")).collect::<Vec<u32>>()
    });
    let name = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    children.filter(|pid| name(pid).trim() == "cricket-log").collect()
}

/// Its answer, which must come although a disk does not answer.
async fn promptly<T>(what: &str, call: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let answer = call.await;
    assert!(started.elapsed() < PROMPT, "{what} took {:?}", started.elapsed());
    answer
}

async fn stop(node: &Node, id: &str) {
    let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: 0 };
    node.runtime().await.stop_container(request).await.expect("StopContainer");
}

#[tokio::test]
async fn a_disk_that_does_not_answer_holds_up_its_logs_and_nothing_else() {
    let mut node = Node::prepare().await;
    let mut disk = SlowDisk::mount(&node).await;
    let place = disk.place.clone();
    node.enter = disk.enter();
    let node = node.begin().await;
    node.load_demo().await;
    let on_disk = |name: &str| cri::PodSandboxConfig { log_directory: place.display().to_string(), ..pod(&node, name) };
    let (config, doomed_config, other_config) = (on_disk("stalled"), on_disk("doomed"), pod(&node, "other"));
    let id = node.run_pod(&config).await;
    let talker = node.start_container(&id, container("talker", &["demo", "lines", "0", "1"]), &config).await;
    let victim = node.start_container(&id, container("victim", &["demo", "lines", "0", "1"]), &config).await;
    let doomed = node.run_pod(&doomed_config).await;
    node.start_container(&doomed, container("doomed", &["demo", "lines", "0", "1"]), &doomed_config).await;
    let other = node.run_pod(&other_config).await;
    node.start_container(&other, container("main", &["demo", "lines", "0", "1"]), &other_config).await;
    let flood = ["demo", "lines", &FLOOD_LINES.to_string(), "0"];
    let flooder = node.start_container(&id, container("flooder", &flood), &config).await;
    for name in ["talker.log", "victim.log", "doomed.log", "flooder.log"] {
        eventually(name, || (!disk.lines(&node, name).is_empty()).then_some(())).await;
    }

    disk.stop(&node, &[&id, &doomed]);
    let told = eventually_async("the silence is told", async || {
        let message = node.container_status(&talker).await.message;
        message.contains("the disk does not answer").then_some(message)
    });
    assert!(told.await.contains("talker.log"));
    let answer = promptly("ExecSync", node.exec(&talker, &["demo", "echo", "fine"], 10)).await.expect("ExecSync");
    assert_eq!(answer.stdout, b"fine\n");
    promptly("StopContainer", stop(&node, &victim)).await;
    assert_eq!(node.container_status(&victim).await.state(), cri::ContainerState::ContainerExited);
    let request = cri::ReopenContainerLogRequest { container_id: talker.clone() };
    let refused = async || node.runtime().await.reopen_container_log(request).await.expect_err("it does not answer");
    let refused = promptly("ReopenContainerLog", refused()).await;
    assert!(refused.message().contains("the disk does not answer"), "{refused}");
    let log = node.log_of("other", "main");
    let so_far = log_lines(&log).len();
    eventually("others log", || (log_lines(&log).len() > so_far).then_some(())).await;
    promptly("the pod's end", node.remove_pod(&doomed)).await;

    disk.signal(Signal::CONT);
    eventually_async("the log is written again", async || {
        node.container_status(&talker).await.message.is_empty().then_some(())
    })
    .await;
    assert_eq!(node.exit_of(&flooder).await.exit_code, 0);
    eventually("the flood is in the log", || (disk.lines(&node, "flooder.log").len() == FLOOD_LINES).then_some(()))
        .await;
    let before = disk.lines(&node, "talker.log").len();
    eventually("more lines", || (disk.lines(&node, "talker.log").len() > before).then_some(())).await;
    stop(&node, &talker).await;
    for name in ["talker.log", "victim.log", "doomed.log", "flooder.log"] {
        assert_whole(&disk.lines(&node, name));
    }
    node.remove_pod(&id).await;
    node.remove_pod(&other).await;
    // Where a mount is the test's, the daemon found its node.
    if disk.fuse.is_some() { node.terminate_and_account().await } else { node.stop_and_account().await }
}

#[tokio::test]
async fn logs_that_are_renamed_under_a_flood_lose_and_tear_nothing() {
    let node = Node::start().await;
    node.load_demo().await;
    let config = pod(&node, "flood");
    let id = node.run_pod(&config).await;
    let flooder = node.start_container(&id, container("main", &["demo", "lines", "0", "0"]), &config).await;
    let log = node.log_of("flood", "main");
    let mut parts = Vec::new();
    for number in 0..ROTATIONS {
        eventually("it is written", || std::fs::metadata(&log).is_ok_and(|log| log.len() > 0).then_some(())).await;
        let part = log.with_extension(format!("log.{number}"));
        std::fs::rename(&log, &part).expect("a file of ours");
        parts.push(part);
        let request = cri::ReopenContainerLogRequest { container_id: flooder.clone() };
        node.runtime().await.reopen_container_log(request).await.expect("ReopenContainerLog");
    }
    stop(&node, &flooder).await;
    parts.push(log);
    let mut expected = 1;
    for part in &parts {
        let text = std::fs::read_to_string(part).expect("a log");
        assert!(text.ends_with('\n'), "{}", part.display());
        for line in text.lines() {
            // What was cut by the container's end is the last of all.
            let is_next = line.split_once(" F ").map(|(_, content)| content.strip_prefix("line "));
            let is_next = is_next.flatten().and_then(|number| number.parse::<usize>().ok()) == Some(expected);
            assert!(is_next || line.contains(" P "), "{}: {line:?} and not line {expected}", part.display());
            expected += 1;
        }
    }
    assert!(expected > ROTATIONS);
    node.remove_pod(&id).await;
    node.stop_and_account().await;
}
