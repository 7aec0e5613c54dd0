//! A hundred pods come and go (`scripts/soak --in-turn 1000`: a thousand): afterwards the machine and the daemon are as
//! they were, and the daemon has the memory that it had after the first of them.

use std::collections::BTreeSet;
use std::path::Path;

use crate::node::{Footprint, Node, container, eventually, eventually_async, mount_points, pod};

/// Unless CRICKET_PODS_IN_TURN says otherwise.
const PODS: usize = 100;
/// After so many the daemon has what it needs; then it may have so much more.
const SETTLED: usize = 50;
const GROWTH_KB_MAX: usize = 3 << 10;
/// Unless CRICKET_PODS_AT_ONCE says otherwise; then the goals are asserted, which are those of a release build.
const AT_ONCE: usize = 20;
const DAEMON_KB_MAX: usize = 30 << 10;
const SUPERVISOR_KB_MAX: usize = 800;
/// So many first, so that what is made once and kept has been made.
const WARM_UP: usize = 3;

async fn come_and_go(node: &Node, name: &str) {
    let config = pod(node, name);
    let pod = node.run_pod(&config).await;
    let id = node.start_container(&pod, container("main", &["demo", "sleep", "inf"]), &config).await;
    let said = node.exec(&id, &["demo", "echo", name], 10).await.expect("ExecSync");
    assert_eq!(said.stdout, format!("{name}\n").into_bytes());
    node.remove_pod(&pod).await;
    std::fs::remove_dir_all(node.logs().join(name)).expect("the log stays, for whoever asked for it");
}

/// What a process has in memory.
fn resident_kb(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process of ours");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// What a process has in memory, with its part of what it shares.
fn proportional_kb(pid: u32) -> usize {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a process of ours");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Everything that could pile up.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    processes: usize,
    descriptors: usize,
    mounts: usize,
    namespaces: usize,
    cgroups: usize,
    files: BTreeSet<String>,
}

impl Account {
    fn take(node: &Node) -> Self {
        let daemon = node.daemon_pid();
        let mut files = BTreeSet::new();
        list(&node.dir, &mut files);
        Self {
            processes: Footprint::take().process_count(),
            descriptors: std::fs::read_dir(format!("/proc/{daemon}/fd")).expect("a process of ours").count(),
            mounts: mount_points(format!("/proc/{daemon}/mountinfo")).len(),
            namespaces: namespaces(),
            cgroups: cgroups(daemon),
            files,
        }
    }
}

/// What there is when nothing comes or goes any more.
async fn settled(node: &Node) -> Account {
    let mut last = Account::take(node);
    eventually_async("nothing comes or goes", async || {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let now = Account::take(node);
        let is_same = now == last;
        last = now;
        is_same.then_some(())
    })
    .await;
    last
}

/// Names of all files but those that only grow.
fn list(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&path, names);
        }
        names.insert(path.display().to_string());
    }
}

/// Different namespaces that processes of ours are in.
fn namespaces() -> usize {
    let processes = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let links =
        processes.flat_map(|process| std::fs::read_dir(process.path().join("ns")).into_iter().flatten().flatten());
    links.filter_map(|link| std::fs::read_link(link.path()).ok()).collect::<BTreeSet<_>>().len()
}

/// Directories below the daemon's parent cgroup, where there is cgroup v2.
fn cgroups(daemon: u32) -> usize {
    fn below(dir: &Path) -> usize {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| 1 + below(&e.path())).sum()
    }
    let text = std::fs::read_to_string(format!("/proc/{daemon}/cgroup")).unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
    let own = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    if path == "/" { 0 } else { own.parent().map_or(0, below) }
}

#[tokio::test]
async fn a_hundred_pods_leave_nothing_behind() {
    let node = Node::start().await;
    node.load_demo().await;
    for number in 0..WARM_UP {
        come_and_go(&node, &format!("warm-{number}")).await;
    }
    let before = settled(&node).await;
    let pods = std::env::var("CRICKET_PODS_IN_TURN").ok().and_then(|text| text.parse().ok()).unwrap_or(PODS);
    let mut settled = None;
    for number in 0..pods {
        come_and_go(&node, &format!("pod-{number}")).await;
        if (number + 1) % SETTLED == 0 {
            let now = resident_kb(node.daemon_pid());
            println!("{} pods: the daemon has {now} KB", number + 1);
            let then = *settled.get_or_insert(now);
            assert!(now < then + GROWTH_KB_MAX, "the daemon grows: {then} KB, then {now} KB after {} pods", number + 1);
        }
    }
    // A process that has been killed may take a moment to go.
    let mut after = Account::take(&node);
    for _ in 0..100 {
        if after == before {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        after = Account::take(&node);
    }
    assert_eq!(after, before);
    node.stop_and_account().await;
}

#[tokio::test]
async fn pods_that_are_made_at_once_are_all_there() {
    let node = Node::start().await;
    node.load_demo().await;
    let asked = std::env::var("CRICKET_PODS_AT_ONCE").ok().and_then(|text| text.parse().ok());
    let at_once = asked.unwrap_or(AT_ONCE);
    let configs: Vec<_> = (0..at_once).map(|number| pod(&node, &format!("crowd-{number}"))).collect();
    let pods = futures_util::future::join_all(configs.iter().map(|config| node.run_pod(config))).await;
    let started = pods
        .iter()
        .zip(&configs)
        .map(|(pod, config)| node.start_container(pod, container("main", &["demo", "sleep", "inf"]), config));
    let containers = futures_util::future::join_all(started).await;
    assert_eq!(containers.iter().collect::<BTreeSet<_>>().len(), at_once);
    let daemon = resident_kb(node.daemon_pid());
    let supervisors = pods.iter().map(|pod| proportional_kb(node.supervisor_of(pod))).sum::<usize>() / at_once;
    println!("{at_once} pods at once: the daemon has {daemon} KB, a supervisor in the mean {supervisors} KB (PSS)");
    // A debug build has more.
    if asked.is_some() {
        assert!(daemon < DAEMON_KB_MAX && supervisors < SUPERVISOR_KB_MAX);
    }
    futures_util::future::join_all(pods.iter().map(|pod| node.remove_pod(pod))).await;
    eventually("nothing of them runs", || crate::node::processes_with("sleep inf").is_empty().then_some(())).await;
    node.stop_and_account().await;
}
