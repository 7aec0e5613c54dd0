//! Large amounts through sessions, by Kubernetes' own client over SPDY: what arrives is what was sent, and nobody on
//! the way holds more of it than a few pieces. `CRICKET_STREAM_MB` says how much (100 unless set; a gigabyte takes a
//! minute).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cricket::proto::cri;

use crate::node::{Node, container, succeed};
use crate::pod_network::networked;

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
const DEFAULT_MB: u64 = 100;
const PORT: u16 = 7777;
/// By how much the processes on the way may grow: buffers of both sides, and what an allocator keeps.
const DAEMON_KB: u64 = 12 << 10;
const SUPERVISOR_KB: u64 = 512;
/// Between two looks at their memory.
const LOOK: Duration = Duration::from_millis(100);

/// Bytes that repeat nowhere near: a block that is lost, doubled or out of place is seen.
struct Sequence(u64);

impl Sequence {
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }

    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

/// A multiple of eight, so that pieces and words agree.
const PIECE: usize = 64 << 10;

fn pieces() -> u64 {
    let wanted = std::env::var("CRICKET_STREAM_MB").ok().and_then(|text| text.parse().ok());
    (wanted.unwrap_or(DEFAULT_MB) << 20) / PIECE as u64
}

/// Sends the sequence in one thread and compares what comes back in another.
fn there_and_back(mut to: impl Write + Send, mut from: impl Read) {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut sequence, mut piece) = (Sequence::new(), vec![0; PIECE]);
            for _ in 0..pieces() {
                sequence.fill(&mut piece);
                to.write_all(&piece).expect("the session takes it");
            }
            to.flush().expect("flushed");
        });
        let (mut sequence, mut expected, mut piece) = (Sequence::new(), vec![0; PIECE], vec![0; PIECE]);
        for number in 0..pieces() {
            sequence.fill(&mut expected);
            from.read_exact(&mut piece).expect("as much comes back");
            assert!(piece == expected, "piece {number} is another one");
        }
    });
}

fn resident_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// By how much the process grew while `work` ran, at most.
fn growth_during(pids: [u32; 2], work: impl FnOnce()) -> [u64; 2] {
    let before = pids.map(resident_kb);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = before;
            while !done.load(Ordering::Acquire) {
                let now = pids.map(resident_kb);
                most = [most[0].max(now[0]), most[1].max(now[1])];
                std::thread::park_timeout(LOOK);
            }
            most
        });
        // A failed comparison must not leave the watcher running.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Release);
        watcher.thread().unpark();
        let most = watcher.join().expect("the watcher's end");
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        [most[0] - before[0], most[1] - before[1]]
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_through_exec_and_port_forward_arrives_bit_for_bit_in_flat_memory() {
    let node = Node::start().await;
    node.load("busybox");
    let config = networked(&node, "streams");
    let pod = node.run_pod(&config).await;
    let mut echo = container("echo", &["nc", "-ll", "-p", &PORT.to_string(), "-e", "cat"]);
    echo.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
    let id = node.start_container(&pod, echo, &config).await;
    let pids = [node.daemon_pid(), node.supervisor_of(&pod)];

    let mut exec = node.crictl(["exec", "-i", &id, "cat"]);
    let mut exec = exec.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("crictl");
    let (stdin, stdout) = (exec.stdin.take().expect("its input"), exec.stdout.take().expect("its output"));
    let exec_growth = growth_during(pids, || there_and_back(stdin, stdout));
    assert!(exec.wait().expect("its end").success());

    let mut forward = node.crictl(["port-forward", &pod, &format!(":{PORT}")]);
    let mut forward = forward.stdout(Stdio::piped()).spawn().expect("crictl");
    let mut lines = BufReader::new(forward.stdout.take().expect("its output")).lines();
    let said = lines.next().expect("it says where").expect("a line");
    let address = said.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).expect("an address").to_owned();
    let socket = TcpStream::connect(&address).expect("connected");
    let sender = socket.try_clone().expect("cloned");
    let forward_growth = growth_during(pids, || there_and_back(sender, socket));
    forward.kill().expect("killed");
    forward.wait().expect("its end");

    for growth in [exec_growth, forward_growth] {
        println!("the daemon grew by {} kB, the supervisor by {} kB", growth[0], growth[1]);
        assert!(growth[0] < DAEMON_KB && growth[1] < SUPERVISOR_KB, "exec {exec_growth:?}, forward {forward_growth:?}");
    }
    node.remove_pod(&pod).await;
    succeed(node.cricket(["image", "remove"]).arg(BUSYBOX));
    node.stop_and_account().await;
}
