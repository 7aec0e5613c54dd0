//! A template, one supervisor of it, and a connection: what the tests of the pod's process stand on.

mod spec;

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use cricket::executor::protocol::{self, MESSAGE_LIMIT, SUPERVISOR_SOCKET};
use cricket::proto::supervisor as wire;
use cricket::proto::supervisor::from_supervisor::Message;
use cricket::proto::supervisor::request::Op;
use cricket::proto::supervisor::{NamespaceMode, event, reply};
use cricket::store::{ContainerId, PodId};

/// For everything that is waited for.
const DEADLINE: Duration = Duration::from_secs(20);
/// A static busybox.
const BUSYBOX: &str = "/bin/busybox";
/// The program under test, in memory and sealed, as the daemon hands it to a template. CRICKET_TEST_PROGRAM names
/// another than the one that was built with the tests: measurements want a release build.
static PROGRAM: LazyLock<OwnedFd> = LazyLock::new(|| {
    use rustix::fs::{MemfdFlags, SealFlags};
    let path = std::env::var_os("CRICKET_TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_cricket").into());
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut memory = fs::File::from(rustix::fs::memfd_create("cricket", flags).expect("memory"));
    std::io::copy(&mut fs::File::open(path).expect("the program"), &mut memory).expect("copied");
    rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .expect("sealed");
    // Above the numbers that the template is given.
    rustix::io::fcntl_dupfd_cloexec(&memory, 32).expect("a copy")
});
/// What the containers of the tests find in /bin.
const APPLETS: &[&str] = &[
    "sh", "cat", "sleep", "true", "hostname", "id", "grep", "ls", "ps", "tty", "stty", "nc", "echo", "setsid", "yes",
    "mount", "touch", "dd",
];

pub type Reply<T> = Result<T, wire::Error>;

pub struct Fixture {
    template: Child,
    base: PathBuf,
    pid: i32,
    daemon: Daemon,
    /// Kept open: the template ends when it closes.
    _template_socket: OwnedFd,
    execs: u64,
}

pub struct Daemon {
    socket: OwnedFd,
    next: u64,
    events: VecDeque<event::Event>,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Container {
    pub id: String,
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub pid: NamespaceMode,
    pub target: String,
    pub timeout_ms: u64,
    pub cwd: String,
    /// Name of its cgroup below the pod's.
    pub cgroup: String,
    pub shared: Option<PathBuf>,
    /// Without it the filter is installed before capabilities go.
    pub no_new_privileges: bool,
}

#[derive(Debug)]
pub struct Output {
    pub exit_code: i32,
    pub stdout: String,
}

pub struct Attached {
    stdin: OwnedFd,
    output: OwnedFd,
}

impl Attached {
    pub fn write(&self, text: &str) {
        rustix::io::write(&self.stdin, text.as_bytes()).expect("written");
    }

    pub fn read_all(self) -> String {
        drop(self.stdin);
        read_to_end(self.output)
    }
}

impl Container {
    pub fn with_terminal(self) -> Self {
        Self { tty: true, stdin: true, ..self }
    }
    pub fn with_stdin(self) -> Self {
        Self { stdin: true, ..self }
    }
    pub fn with_pid(self, pid: NamespaceMode) -> Self {
        Self { pid, ..self }
    }
    pub fn with_target(self, id: &str) -> Self {
        Self { target: id.to_owned(), ..self }
    }
    pub fn with_cwd(self, cwd: &str) -> Self {
        Self { cwd: cwd.to_owned(), ..self }
    }
    pub fn with_cgroup(self, cgroup: &str) -> Self {
        Self { cgroup: cgroup.to_owned(), ..self }
    }
    /// A directory at /shared whose mounts travel both ways.
    pub fn with_shared(self, source: &Path) -> Self {
        Self { shared: Some(source.to_owned()), ..self }
    }
    pub fn with_timeout_ms(self, timeout_ms: u64) -> Self {
        Self { timeout_ms, ..self }
    }
}

/// Puts this thread, and what it starts, into mounts where cgroup v2 is where it should be, with a pod's cgroup. `None`
/// where there is none that may be written to.
pub fn make_pod_cgroup() -> Option<PathBuf> {
    if !is_possible() {
        return None;
    }
    cricket::sys::namespaces::unshare(rustix::thread::UnshareFlags::NEWNS).expect("a mount namespace");
    let none: Option<&str> = None;
    let flags = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(none, "/", none, flags, none).expect("private");
    nix::mount::mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), nix::mount::MsFlags::empty(), none).ok()?;
    let path = PathBuf::from(format!("/sys/fs/cgroup/cricket-test-{}", PodId::random().short()));
    fs::create_dir(&path).ok()?;
    Some(path)
}

/// What a living process has used itself.
fn scheduled_ms(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e6
}

/// Root with a range of ids, and something to run.
fn is_possible() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let ids: u64 = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum();
    let possible = rustix::process::geteuid().is_root() && ids > 2000 && Path::new(BUSYBOX).exists();
    if !possible {
        eprintln!("skipped: needs root of a user namespace with a range of ids, and {BUSYBOX}");
    }
    possible
}

impl Fixture {
    pub fn new(sandbox: wire::SandboxSpec) -> Option<Self> {
        if !is_possible() {
            return None;
        }
        let (template, socket, base) = start_template();
        let reply = spawn(&socket, &base, sandbox);
        assert_eq!(reply.error, None);
        let daemon = Daemon::connect(&base.join("state"));
        Some(Self { template, base, pid: reply.pid, daemon, _template_socket: socket, execs: 0 })
    }

    /// The error with which a sandbox is refused.
    pub fn refused(sandbox: wire::SandboxSpec) -> Option<wire::Error> {
        let (mut template, socket, base) = start_template();
        let reply = spawn(&socket, &base, sandbox);
        drop(socket);
        template.wait().expect("the template ends with its socket");
        fs::remove_dir_all(base).expect("removed");
        reply.error
    }

    pub fn state_dir(&self) -> &'static Path {
        Box::leak(self.base.join("state").into_boxed_path())
    }

    /// Where compiled filters are kept.
    pub fn seccomp_store(&self) -> PathBuf {
        self.base.join("state/seccomp")
    }

    pub fn container(&self, command: &[&str]) -> Container {
        Container {
            id: ContainerId::random().to_string(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            tty: false,
            stdin: false,
            pid: NamespaceMode::Container,
            target: String::new(),
            timeout_ms: 0,
            cwd: "/work".to_owned(),
            cgroup: String::new(),
            shared: None,
            no_new_privileges: true,
        }
    }

    pub fn sleeper(&mut self) -> Container {
        let container = self.container(&["sleep", "9999"]);
        self.create(&container).expect("created");
        self.start(&container).expect("started");
        container
    }

    pub fn create(&mut self, container: &Container) -> Reply<wire::CreateContainerReply> {
        let bundle = self.base.join("state/containers").join(&container.id);
        fs::create_dir_all(&bundle).expect("a bundle");
        fs::create_dir_all(self.base.join("record/containers").join(&container.id)).expect("a directory");
        let shm = self.base.join("state/shm");
        fs::write(bundle.join("config.json"), spec::of(container, &shm)).expect("a spec");
        let request = wire::CreateContainer {
            container_id: container.id.clone(),
            log_path: self.log_path(container).display().to_string(),
            tty: container.tty,
            stdin: container.stdin,
            pid: container.pid.into(),
            pid_target: container.target.clone(),
            oom_score_adj: 100,
            timeout_ms: container.timeout_ms,
            cgroup: container.cgroup.clone(),
            seccomp_store: self.seccomp_store().display().to_string(),
            propagations: container
                .shared
                .iter()
                .map(|_| wire::Propagation { destination: "/shared".into(), mode: "shared".into() })
                .collect(),
            ..Default::default()
        };
        let root = self.overlay(&container.id);
        match self.daemon.ask(Op::CreateContainer(request), &[root])? {
            (reply::Result::CreateContainer(reply), _) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    fn overlay(&self, id: &str) -> OwnedFd {
        use rustix::mount::*;
        let dirs = self.base.join("snapshots").join(id);
        for name in ["upper", "work"] {
            fs::create_dir_all(dirs.join(name)).expect("a directory");
        }
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).expect("overlay");
        fsconfig_set_string(&fs, "lowerdir", self.base.join("root")).expect("lower");
        fsconfig_set_string(&fs, "upperdir", dirs.join("upper")).expect("upper");
        fsconfig_set_string(&fs, "workdir", dirs.join("work")).expect("work");
        fsconfig_set_flag(&fs, "userxattr").expect("userxattr");
        fsconfig_create(&fs).expect("created");
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).expect("mounted")
    }

    pub fn start(&mut self, container: &Container) -> Reply<()> {
        self.call(Op::StartContainer(wire::StartContainer { container_id: container.id.clone() }))
    }

    pub fn remove(&mut self, container: &Container) -> Reply<()> {
        self.call(Op::RemoveContainer(wire::RemoveContainer { container_id: container.id.clone() }))
    }

    pub fn signal(&mut self, container: &Container, signal: i32, all: bool) -> Reply<()> {
        self.call(Op::SignalContainer(wire::SignalContainer { container_id: container.id.clone(), signal, all }))
    }

    pub fn call(&mut self, op: Op) -> Reply<()> {
        self.daemon.ask(op, &[]).map(|_| ())
    }

    pub fn hello(&mut self) -> wire::HelloReply {
        self.daemon.hello()
    }

    pub fn second_daemon(&self) -> Daemon {
        Daemon::connect(&self.base.join("state"))
    }

    pub fn wait_exit(&mut self, container: &Container) -> wire::ContainerExit {
        self.daemon.wait_exit(container)
    }

    pub fn wait_exec(&mut self, id: &str) -> wire::ExecExit {
        self.daemon.wait(|event| match event {
            event::Event::ExecExited(exit) if exit.exec_id == id => Some(exit.clone()),
            _ => None,
        })
    }

    fn exec_with(
        &mut self,
        container: &Container,
        command: &[&str],
        stdio: &[OwnedFd],
        size: (u32, u32),
    ) -> Reply<(String, Vec<OwnedFd>)> {
        self.execs += 1;
        let id = format!("exec-{}", self.execs);
        let request = wire::Exec {
            container_id: container.id.clone(),
            exec_id: id.clone(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            tty: stdio.is_empty(),
            rows: size.0,
            columns: size.1,
        };
        match self.daemon.ask(Op::Exec(request), stdio)? {
            (reply::Result::Exec(reply), descriptors) => {
                assert!(reply.pid > 0);
                Ok((id, descriptors))
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn begin_exec(&mut self, container: &Container, command: &[&str]) -> Reply<String> {
        let null = || OwnedFd::from(fs::File::options().read(true).write(true).open("/dev/null").expect("null"));
        self.exec_with(container, command, &[null(), null(), null()], (0, 0)).map(|(id, _)| id)
    }

    pub fn exec_status(&mut self, container: &Container, command: &[&str]) -> wire::ExecExit {
        let id = self.begin_exec(container, command).expect("runs");
        self.wait_exec(&id)
    }

    pub fn try_exec(&mut self, container: &Container, command: &[&str]) -> Reply<Output> {
        let (stdin, _) = pipe();
        let (reader, writer) = pipe();
        let error = writer.try_clone().expect("a copy");
        let (id, _) = self.exec_with(container, command, &[stdin, writer, error], (0, 0))?;
        let exit_code = self.wait_exec(&id).exit_code;
        Ok(Output { exit_code, stdout: read_to_end(reader) })
    }

    pub fn exec(&mut self, container: &Container, command: &[&str]) -> Output {
        self.try_exec(container, command).expect("runs")
    }

    pub fn exec_terminal(&mut self, container: &Container, command: &[&str], rows: u32, columns: u32) -> Output {
        let (id, mut descriptors) = self.exec_with(container, command, &[], (rows, columns)).expect("runs");
        let terminal = descriptors.pop().expect("a terminal");
        let stdout = read_to_end(terminal);
        Output { exit_code: self.wait_exec(&id).exit_code, stdout }
    }

    pub fn attach(&mut self, container: &Container) -> Attached {
        let (output, writer) = pipe();
        let request = wire::Attach { container_id: container.id.clone(), stdin: true, stdout: true, stderr: false };
        let (_, mut descriptors) = self.daemon.ask(Op::Attach(request), &[writer]).expect("attached");
        Attached { stdin: descriptors.pop().expect("standard input"), output }
    }

    pub fn connect_port(&mut self, port: u32) -> Reply<OwnedFd> {
        let (_, mut descriptors) = self.daemon.ask(Op::Connect(wire::Connect { port }), &[])?;
        let connection = descriptors.pop().expect("a connection");
        protocol::set_nonblocking(&connection, false).expect("blocking");
        Ok(connection)
    }

    pub fn network(&mut self) -> wire::NetworkReply {
        match self.daemon.ask(Op::Network(wire::Network {}), &[]).expect("answered").0 {
            reply::Result::Network(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn log_path(&self, container: &Container) -> PathBuf {
        self.base.join("logs").join(format!("{}.log", container.id))
    }

    pub fn log(&self, container: &Container) -> String {
        fs::read_to_string(self.log_path(container)).expect("a log")
    }

    pub fn exit_record(&self, container: &Container) -> serde_json::Value {
        let path = self.base.join("record/containers").join(&container.id).join("exit.json");
        serde_json::from_str(&fs::read_to_string(path).expect("a record")).expect("json")
    }

    /// Puts a file into the root of the containers to come.
    pub fn file(&self, name: &str, bytes: &[u8], mode: u32) {
        let path = self.base.join("root").join(name);
        fs::write(&path, bytes).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
    }

    pub fn outside(&self) -> PathBuf {
        let path = self.base.join("outside");
        fs::create_dir(&path).expect("a directory");
        path
    }

    pub fn replace_with_link(&self, name: &str, to: &Path) {
        let path = self.base.join("root").join(name);
        fs::remove_dir(&path).expect("removed");
        symlink(to, path).expect("a link");
    }

    /// The supervisor and all below it that live.
    pub fn family(&self) -> Vec<i32> {
        let mut family = vec![self.pid];
        let mut at = 0;
        while at < family.len() {
            let pid = family[at];
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            family.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            at += 1;
        }
        family.retain(|&pid| is_alive(pid));
        family
    }

    /// But for the process that writes the pod's logs.
    pub fn descendants(&self) -> usize {
        let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        self.family().iter().filter(|pid| name(pid).trim() != "cricket-log").count() - 1
    }

    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("there").count()
    }

    pub fn kill_supervisor(&self) {
        kill(self.pid);
    }

    pub fn wait_for(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < end, "waited in vain for {what}: {:?}", self.family());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Prints CPU time of template, supervisor and all their children, for single steps.
    pub fn measure(&mut self) {
        let rounds = 50;
        let sleeper = self.sleeper();
        self.exec_status(&sleeper, &["true"]);
        let step = |pod: &mut Self, what: &str, work: &mut dyn FnMut(&mut Self)| {
            let (cpu, wall) = (pod.cpu_ms(), Instant::now());
            for _ in 0..rounds {
                work(pod);
            }
            let wall = wall.elapsed().as_secs_f64() * 1000.0 / f64::from(rounds);
            println!("{what}: {:.2} CPU ms, {wall:.2} ms", (pod.cpu_ms() - cpu) / f64::from(rounds));
        };
        step(self, "create + start + exit + remove", &mut |pod| {
            let container = pod.container(&["true"]);
            pod.create(&container).expect("created");
            pod.start(&container).expect("started");
            pod.wait_exit(&container);
            pod.remove(&container).expect("removed");
        });
        step(self, "exec true", &mut |pod| {
            pod.exec_status(&sleeper, &["true"]);
        });
        let socket = self._template_socket.try_clone().expect("a copy");
        let mut pods = Vec::new();
        step(self, "spawn (fork, namespaces, answer)", &mut |pod| {
            let base = pod.base.join(format!("more-{}", pods.len()));
            directories(&base);
            let sandbox =
                wire::SandboxSpec { hostname: "x".into(), pid: NamespaceMode::Container.into(), ..Default::default() };
            let reply = spawn(&socket, &base, sandbox);
            assert_eq!(reply.error, None);
            pods.push((base, reply.pid));
        });
        // Supervisors are not waited for by the template: their share is their own.
        let own: f64 = pods.iter().map(|(_, pid)| scheduled_ms(*pid)).sum();
        println!("of a spawn in the supervisor itself: {:.2} CPU ms", own / f64::from(rounds));
        let pss = |pid: i32| -> u64 {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            text.lines()
                .find_map(|l| l.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
                .unwrap_or(0)
        };
        println!(
            "PSS: template {} kB, a used supervisor {} kB, a fresh one of {} {} kB",
            pss(self.template.id() as i32),
            pss(self.pid),
            pods.len(),
            pss(pods[0].1)
        );
        for (base, _) in &pods {
            let mut daemon = Daemon::connect(&base.join("state"));
            daemon.ask(Op::Shutdown(wire::Shutdown { grace_ms: 0 }), &[]).expect("shut down");
        }
    }

    /// Of everything that runs in this test's cgroup-less world: by the kernel's own account of children waited for.
    fn cpu_ms(&self) -> f64 {
        let ns = |path: String| fs::read_to_string(path).unwrap_or_default();
        let mut total = 0.0;
        for pid in [self.pid, self.template.id() as i32] {
            let stat = ns(format!("/proc/{pid}/stat"));
            let fields: Vec<f64> =
                stat[stat.rfind(')').unwrap_or(0) + 1..].split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
            total += (fields[11] + fields[12] + fields[13] + fields[14]) * 10.0;
        }
        total
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        kill(self.pid);
        let _ = self.template.kill();
        let _ = self.template.wait();
        let _ = cricket::executor::leftovers::kill(&self.base.join("state"));
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.base.join("state/supervisor.log")).unwrap_or_default());
        }
        let _ = fs::remove_dir_all(&self.base);
    }
}

impl Daemon {
    fn connect(state: &Path) -> Self {
        let socket = protocol::connect(state, SUPERVISOR_SOCKET).expect("connected");
        protocol::set_nonblocking(&socket, false).expect("blocking");
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(DEADLINE))
            .expect("set");
        Self { socket, next: 1, events: VecDeque::new(), buffer: vec![0; MESSAGE_LIMIT] }
    }

    pub fn hello(&mut self) -> wire::HelloReply {
        match self.ask(Op::Hello(wire::Hello { version: protocol::PROTOCOL_VERSION }), &[]).expect("hello").0 {
            reply::Result::Hello(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    pub fn wait_exit(&mut self, container: &Container) -> wire::ContainerExit {
        self.wait(|event| match event {
            event::Event::ContainerExited(exit) if exit.container_id == container.id => Some(exit.clone()),
            _ => None,
        })
    }

    fn ask(&mut self, op: Op, descriptors: &[OwnedFd]) -> Reply<(reply::Result, Vec<OwnedFd>)> {
        let id = self.next;
        self.next += 1;
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        protocol::send(&self.socket, &wire::Request { id, op: Some(op) }, &borrowed).expect("sent");
        loop {
            let received = protocol::receive::<wire::FromSupervisor>(&self.socket, &mut self.buffer).expect("answered");
            match received.message.message {
                Some(Message::Event(wire::Event { event: Some(event) })) => self.events.push_back(event),
                Some(Message::Reply(reply)) if reply.id == id => {
                    return match reply.result {
                        Some(reply::Result::Error(error)) => Err(error),
                        Some(result) => Ok((result, received.descriptors)),
                        None => panic!("an empty reply"),
                    };
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn wait<T>(&mut self, wanted: impl Fn(&event::Event) -> Option<T>) -> T {
        loop {
            if let Some(found) = self.events.iter().find_map(&wanted) {
                return found;
            }
            let received = protocol::receive::<wire::FromSupervisor>(&self.socket, &mut self.buffer).expect("an event");
            if let Some(Message::Event(wire::Event { event: Some(event) })) = received.message.message {
                self.events.push_back(event);
            }
        }
    }
}

fn start_template() -> (Child, OwnedFd, PathBuf) {
    let base = std::env::temp_dir().join(format!("cricket-pod-{}", PodId::random().short()));
    directories(&base);
    make_root(&base.join("root"));
    let (ours, theirs) = protocol::pair().expect("a pair");
    let mut command = Command::new(cricket::sys::sealed::path(&*PROGRAM));
    command.arg("supervise").stdin(Stdio::null()).env_clear();
    let number = theirs.as_raw_fd();
    // SAFETY: dup2 between fork and exec, in a copy of this process that does nothing else.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(number, 3) == 3 && (number != 3 || libc::fcntl(3, libc::F_SETFD, 0) == 0) {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let template = command.spawn().expect("a template");
    (template, ours, base)
}

fn directories(base: &Path) {
    for name in ["state/containers", "record/containers", "logs"] {
        fs::create_dir_all(base.join(name)).expect("a directory");
    }
}

fn make_root(root: &Path) {
    for name in ["bin", "proc", "sys", "dev", "etc", "tmp", "work"] {
        fs::create_dir_all(root.join(name)).expect("a directory");
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).expect("busybox");
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("a link");
    }
}

fn spawn(socket: &OwnedFd, base: &Path, sandbox: wire::SandboxSpec) -> wire::SpawnReply {
    let state = base.join("state");
    let listener = protocol::listen(&state, SUPERVISOR_SOCKET).expect("listening");
    let sandbox = wire::SandboxSpec {
        pod_id: PodId::random().to_string(),
        state_dir: state.display().to_string(),
        record_dir: base.join("record").display().to_string(),
        ..sandbox
    };
    let request = wire::SpawnRequest { id: 7, sandbox: Some(sandbox) };
    protocol::send(socket, &request, &[listener.as_fd()]).expect("sent");
    let reply = protocol::receive::<wire::SpawnReply>(socket, &mut vec![0; MESSAGE_LIMIT]).expect("answered").message;
    assert_eq!(reply.id, 7);
    reply
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe")
}

pub fn read_to_end(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    // A terminal whose other side is gone says EIO instead of the end.
    while let Ok(length @ 1..) = rustix::io::read(&fd, &mut buffer) {
        bytes.write_all(&buffer[..length]).expect("memory");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rfind(')').is_some_and(|at| !stat[at + 1..].trim_start().starts_with('Z'))
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Waits until `done`, where there is no pod to ask.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
