//! A cricket of a test's own: directories below a temporary one, a daemon, clients, and an account of what it leaves.
//!
//! One at a time: the account counts processes and mounts of the whole user, so tests that hold a [`Node`] take turns.

mod archive;
pub mod cgroups;
mod footprint;
mod pods;
mod registry;

use std::ffi::OsStr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cri::image_service_client::ImageServiceClient;
use cri::runtime_service_client::RuntimeServiceClient;
use cricket::proto::cri;
use cricket::proto::cricket::{LoadImagesRequest, cricket_client::CricketClient};
use cricket::sys::crash::{self, Point};
use tokio::sync::{Mutex, MutexGuard};
use tokio_stream::StreamExt;
use tonic::transport::Channel;

pub use archive::{archive_of, image_of, layer_of};
pub use footprint::{Footprint, mount_points, parent_of, processes_with};
pub use pods::{DEMO, LogLine, container, create_request, log_lines, pod};
pub use registry::Registry;

pub type Runtime = RuntimeServiceClient<Channel>;
pub type Images = ImageServiceClient<Channel>;

/// A machine of two cores that does other things too is given this long for what takes a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often something is looked at while it is waited for.
const GLANCE: Duration = Duration::from_millis(20);
/// What a client takes as one message, as kubelets have it.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How long something is waited for: where the processor is emulated (scripts/vm), CRICKET_TEST_SLOWNESS times as long.
pub fn patience() -> Duration {
    let slowness = std::env::var("CRICKET_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok());
    PATIENCE * slowness.unwrap_or(1)
}

static TURN: Mutex<()> = Mutex::const_new(());

/// See the module. Dropping it ends the daemon and what it started.
pub struct Node {
    daemon: Option<Child>,
    /// `cricket`, or the build that has crash points.
    binary: PathBuf,
    pub dir: PathBuf,
    /// In front of `cricket serve`: where a test has it run elsewhere.
    pub enter: Vec<String>,
    before: Footprint,
    _turn: MutexGuard<'static, ()>,
}

impl Node {
    /// Starts one and waits until it says that it is ready.
    pub async fn start() -> Self {
        let node = Self::prepare().await;
        node.begin().await
    }

    /// Directories only, so that a test can write configuration first.
    pub async fn prepare() -> Self {
        let turn = TURN.lock().await;
        // On a machine of its own (`scripts/vm test --root`) root may.
        assert!(
            !rustix::process::geteuid().is_root() || std::env::var_os("CRICKET_TEST_AS_ROOT").is_some(),
            "black-box tests run as an ordinary user: scripts/test blackbox"
        );
        let dir = std::env::temp_dir().join(format!("cricket-test-{}-{}", std::process::id(), unique()));
        for name in ["", "certs.d", "logs", "run"] {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir.join(name)).expect("a directory in /tmp");
        }
        let binary = cricket_binary();
        Self { daemon: None, binary, enter: Vec::new(), before: Footprint::take(), dir, _turn: turn }
    }

    /// As [`Node::start`], of the build that has crash points (`cricket::sys::crash`), which [`Node::arm`] sets.
    pub async fn start_with_crash_points() -> Self {
        let mut node = Self::prepare().await;
        node.use_crash_points();
        node.begin().await
    }

    /// For what [`Node::begin`] starts.
    pub fn use_crash_points(&mut self) {
        if std::env::var_os("CRICKET_TEST_KIT").is_some() {
            self.binary = provision("cricket-dev");
        }
    }

    /// Whatever is started from now on is of this program; `None`: of the tested one.
    pub fn use_binary(&mut self, other: Option<&PathBuf>) {
        self.binary = other.cloned().unwrap_or_else(cricket_binary);
    }

    /// The `turn`th who comes to the point acts so.
    pub fn arm(&self, point: Point, action: &str, turn: usize) {
        let line = format!("{} {action} {turn}", point.name());
        // In one piece: who reads half a line would miss it.
        std::fs::write(self.dir.join("crash.new"), line).expect("a file of ours");
        std::fs::rename(self.dir.join("crash.new"), self.crash_file()).expect("a file of ours");
    }

    /// Whether the point that was armed was reached.
    pub fn has_fired(&self) -> bool {
        !self.crash_file().exists()
    }

    /// Takes back what [`Node::arm`] set; false: it was reached.
    pub fn disarm(&self) -> bool {
        std::fs::remove_file(self.crash_file()).is_ok()
    }

    /// Waits until somebody is held at the armed point.
    pub async fn until_held(&self) {
        let held = self.crash_file().with_extension("held");
        eventually("somebody is held", || held.exists().then_some(())).await;
    }

    /// Lets him go on.
    pub fn release(&self) {
        std::fs::remove_file(self.crash_file().with_extension("held")).expect("somebody is held");
    }

    fn crash_file(&self) -> PathBuf {
        self.dir.join("crash")
    }

    /// Starts the daemon in what [`Node::prepare`] made.
    pub async fn begin(mut self) -> Self {
        self.before = Footprint::take();
        self.serve();
        self.wait_until_ready().await;
        self
    }

    /// Starts (again) the daemon of this node.
    pub fn serve(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.daemon_log()).expect("a log");
        let stderr = log.try_clone().expect("a descriptor");
        let mut command = self.in_front(self.cricket(["serve"]));
        let child = command.stdin(Stdio::null()).stdout(log).stderr(stderr).spawn();
        self.daemon = Some(child.expect("scripts/test builds cricket"));
    }

    /// As the daemon is started: see [`Node::enter`].
    pub fn in_front(&self, command: Command) -> Command {
        let Some((program, arguments)) = self.enter.split_first() else { return command };
        let mut longer = Command::new(program);
        longer.args(arguments).arg(command.get_program()).args(command.get_args());
        longer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        longer
    }

    /// Waits until RuntimeReady is true.
    pub async fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + patience();
        loop {
            if let Ok(channel) = connect(self.socket()).await
                && let Ok(answer) = runtime_client(channel).status(cri::StatusRequest::default()).await
                && is_ready(&answer.into_inner())
            {
                return;
            }
            let ended = self.daemon.as_mut().and_then(|child| child.try_wait().expect("our child"));
            assert!(ended.is_none(), "cricket serve ended: {ended:?}\n{}", self.daemon_said());
            assert!(Instant::now() < deadline, "not ready after {:?}\n{}", patience(), self.daemon_said());
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// Whether the daemon has ended by itself.
    pub fn is_dead(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| daemon.try_wait().expect("our child").is_some())
    }

    /// SIGTERM, as systemd sends it.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(self.daemon.as_ref().expect("a daemon was started"));
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our child");
    }

    /// Waits for the end of a daemon that dies by itself.
    pub async fn wait_for_death(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon was started");
        eventually("the daemon dies", || daemon.try_wait().expect("our child")).await;
    }

    /// The daemon's process id.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon was started").id()
    }

    /// SIGKILL, as the kernel's memory killer sends it.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon was started");
        daemon.kill().expect("our child");
        daemon.wait().expect("our child");
    }

    /// A client of the runtime service.
    pub async fn runtime(&self) -> Runtime {
        runtime_client(connect(self.socket()).await.expect("the daemon listens"))
    }

    /// A client of the image service.
    pub async fn images(&self) -> Images {
        let channel = connect(self.socket()).await.expect("the daemon listens");
        ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/cricket.sock")
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Where the pods of this test log, a directory each.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// What a test writes there between [`Node::prepare`] and [`Node::begin`] counts.
    pub fn config(&self) -> PathBuf {
        self.dir.join("cricket.toml")
    }

    pub fn daemon_log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// The end of the daemon's log, for messages of failed tests.
    pub fn daemon_said(&self) -> String {
        const LINES: usize = 30;
        let text = std::fs::read_to_string(self.daemon_log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// Our command line, pointed at this node.
    pub fn cricket<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env(crash::VARIABLE, self.crash_file())
            .env("CRICKET_ROOT", self.root())
            .env("CRICKET_STATE", self.dir.join("run"))
            .env("CRICKET_SOCKET", self.socket())
            .env("CRICKET_REGISTRY_CONFIG_PATH", self.dir.join("certs.d"))
            .env("CRICKET_CNI_CONFIG_DIR", self.dir.join("net.d"))
            .env("CRICKET_CNI_PLUGIN_DIRS", format!("{}:/usr/lib/cni", self.dir.join("plugins").display()))
            .env("CRICKET_CNI_TIMEOUT_SECONDS", "20");
        if self.config().exists() {
            command.env("CRICKET_CONFIG", self.config());
        }
        command
    }

    /// What makes commands that run inside this node; it may outlive the borrow of the node.
    pub fn enter(&self) -> Box<dyn Fn(&[&str]) -> Command> {
        let (root, state) = (self.root(), self.dir.join("run"));
        Box::new(move |arguments| {
            let mut command = Command::new(cricket_binary());
            command.arg("enter").arg("--").args(arguments);
            command.env("CRICKET_ROOT", &root).env("CRICKET_STATE", &state);
            command
        })
    }

    /// The process of a pod's supervisor, from the record by which a restarted daemon would find it.
    pub fn supervisor_of(&self, pod: &str) -> u32 {
        let record = std::fs::read(self.dir.join("run/pods").join(pod).join("supervisor.json")).expect("its record");
        let record: serde_json::Value = serde_json::from_slice(&record).expect("a record");
        record["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process id")
    }

    /// What a line of shell says that runs in the node's namespaces.
    pub fn exec_in_node(&self, line: &str) -> String {
        text(&succeed(&mut self.cricket(["enter", "--", "sh", "-c", line])).stdout)
    }

    /// Kubernetes' own command line, pointed at this node.
    pub fn crictl<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Command {
        let endpoint = format!("unix://{}", self.socket().display());
        // Without a file of its own it looks for the machine's.
        let config = self.dir.join("crictl.yaml");
        std::fs::write(&config, format!("runtime-endpoint: {endpoint}\n")).expect("a file of ours");
        let mut command = Command::new(provision("clients/crictl"));
        command
            .arg("--config")
            .arg(config)
            .args(["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint, "--timeout", "30s"])
            .args(arguments);
        command
    }

    /// Loads the demo image, which the binary carries.
    pub async fn load_demo(&self) {
        self.try_to_load_demo().await.expect("LoadImages");
    }

    /// As [`Node::load_demo`], of a daemon that may die of it.
    pub async fn try_to_load_demo(&self) -> Result<(), tonic::Status> {
        let channel = connect(self.socket()).await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
        let request = LoadImagesRequest { data: cricket::demo::ARCHIVE.to_vec() };
        let answers = CricketClient::new(channel).load_images(tokio_stream::once(request)).await?;
        let messages: Vec<_> = answers.into_inner().collect().await;
        messages.into_iter().try_for_each(|message| message.map(drop))
    }

    /// Loads one of scripts/images.
    pub fn load(&self, image: &str) {
        succeed(self.cricket(["image", "load"]).arg(provision(&format!("images/{image}.tar"))));
    }

    /// Ends daemon, pods and node as a person would, and asserts that nothing is left but what is on disk.
    pub async fn stop_and_account(mut self) {
        succeed(&mut self.cricket(["stop", "--pods"]));
        let mut daemon = self.daemon.take().expect("a daemon was started");
        let status = eventually("the daemon ends", || daemon.try_wait().expect("our child")).await;
        assert!(status.success(), "cricket serve: {status}\n{}", self.daemon_said());
        self.assert_nothing_left().await;
        let left = cgroups::left();
        assert!(left.is_empty(), "cgroups left behind: {left:?}");
    }

    /// As [`Node::stop_and_account`], for a daemon whose root nobody outside sees: it is told by a signal.
    pub async fn terminate_and_account(mut self) {
        let mut daemon = self.daemon.take().expect("a daemon was started");
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our child");
        let status = eventually("the daemon ends", || daemon.try_wait().expect("our child")).await;
        assert!(status.success(), "cricket serve: {status}\n{}", self.daemon_said());
        self.assert_nothing_left().await;
    }

    /// Processes, mounts and sockets are as they were before the node was started.
    pub async fn assert_nothing_left(&self) {
        let mut left = Vec::new();
        for _ in 0..patience().as_millis() / GLANCE.as_millis() {
            left = Footprint::take().beyond(&self.before);
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(GLANCE).await;
        }
        assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
        assert!(!self.socket().exists(), "the socket is left behind");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's last words:\n{}", self.daemon_said());
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = self.cricket(["stop", "--pods"]).stdin(Stdio::null()).output();
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = self.cricket(["stop", "--pods"]).stdin(Stdio::null()).output();
        if std::fs::remove_dir_all(&self.dir).is_err() {
            // Files in snapshots belong to subordinate ids: only a root over these can remove them.
            let mut remove = Command::new("unshare");
            let _ = remove.args(["--map-root-user", "--map-auto", "--", "rm", "-rf"]).arg(&self.dir).output();
        }
    }
}

/// Waits until `look` finds something.
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    eventually_async(what, async || look()).await
}

/// As [`eventually`], where looking is a call.
pub async fn eventually_async<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {:?} in vain until {what}", patience());
        tokio::time::sleep(GLANCE).await;
    }
}

/// Runs it; a failure fails the test with what was said.
#[track_caller]
pub fn succeed(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().expect("the program is there");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

/// Runs it; a success fails the test. Answers the exit status and all that it said.
#[track_caller]
pub fn fail(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().expect("the program is there");
    assert!(!output.status.success(), "{command:?} succeeded: {}", text(&output.stdout));
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A number that no other call of this process gets.
pub fn unique() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// What scripts/test made for the tests: clients, images, scripts.
pub fn provision(name: &str) -> PathBuf {
    let dir = std::env::var_os("CRICKET_TEST_KIT")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"), PathBuf::from);
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: scripts/test makes it", path.display());
    path
}

fn cricket_binary() -> PathBuf {
    std::env::var_os("CRICKET_TEST_KIT")
        .map_or_else(|| env!("CARGO_BIN_EXE_cricket").into(), |kit| PathBuf::from(kit).join("cricket"))
}

/// A client of the daemon behind `socket`, if there is one.
pub async fn runtime_at(socket: &Path) -> Option<Runtime> {
    connect(socket.to_owned()).await.ok().map(runtime_client)
}

fn runtime_client(channel: Channel) -> Runtime {
    RuntimeServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

async fn connect(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let dial = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    tonic::transport::Endpoint::from_static("http://localhost").connect_with_connector(dial).await
}

fn is_ready(status: &cri::StatusResponse) -> bool {
    let conditions = status.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    conditions.iter().any(|condition| condition.r#type == "RuntimeReady" && condition.status)
}

/// Who owns a file or a process.
pub fn owner(path: &Path) -> Option<u32> {
    std::fs::symlink_metadata(path).ok().map(|metadata| metadata.uid())
}
