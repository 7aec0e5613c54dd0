//! The creation of a container: the supervisor's side (streams, the forked creator, its deadline) and the creator's
//! (attach the root, check it, call the runtime, verify what came of it), which reports once and exits.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MoveMountFlags, UnmountFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::ThreadNameSpaceType;

use super::connection::{Answer, Requester};
use super::container::{Container, signal_process};
use super::fault::{Fault, Result};
use super::log::{ContainerLog, LogPath, Stream};
use super::pod::{Pod, now};
use super::signals::Ending;
use super::{cgroup, preflight, requests, runtime, sandbox, signals, start};
use crate::executor::leftovers::{self, ProcessRecord};
use crate::executor::protocol::{self, MESSAGE_LIMIT};
use crate::proto::supervisor as wire;
use crate::proto::supervisor::{ContainerPhase, ErrorKind, NamespaceMode, reply};
use crate::store::ContainerId;
use crate::sys::propagation::{self, Propagation};
use crate::sys::{descriptors, fork};

/// Containers that a pod may hold, with those that have exited and are not removed yet.
const CONTAINERS_LIMIT: usize = 1024;
/// Deadline where the request names none.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(120);
/// Children that ended before anybody knew them, kept until they are asked for.
pub const STRAYS_LIMIT: usize = 64;

/// A creation under way.
pub struct Creation {
    asker: Requester,
    /// The creator.
    pub(super) pid: i32,
    report: OwnedFd,
    pub(super) deadline: Option<Instant>,
    late: bool,
}

impl Creation {
    /// Kills the creator, the runtime's helper and the container's first process, whichever there are.
    pub(super) fn kill(&self, bundle: &Path) {
        // The creator leads a process group, in which the helper stays; the first process has left it.
        if let Some(group) = Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        signal_process(self.pid, Signal::KILL);
        if let Some(pid) = runtime::first_process(bundle) {
            signal_process(pid, Signal::KILL);
        }
    }
}

/// What the creator works with.
struct Job<'a> {
    request: wire::CreateContainer,
    bundle: PathBuf,
    runtime_dir: PathBuf,
    cgroup: Option<PathBuf>,
    pod_cgroup: Option<PathBuf>,
    /// PID namespace to be joined, by path.
    pid_namespace: Option<String>,
    rootfs: OwnedFd,
    stdio: Option<[OwnedFd; 3]>,
    report: OwnedFd,
    start_report: OwnedFd,
    supervisor: &'a OwnedFd,
}

/// The container's ends of its streams (`None`: a terminal is made inside), and ours.
struct Streams {
    theirs: Option<[OwnedFd; 3]>,
    stdin: Option<OwnedFd>,
    outputs: Option<[OwnedFd; 2]>,
}

impl Pod {
    /// Begins to create a container; the answer comes when its creator has ended.
    pub(super) fn create(&mut self, asker: Requester, request: wire::CreateContainer, rootfs: OwnedFd) -> Result<()> {
        let id = self.checked_id(&request)?;
        let bundle = self.state_dir.join("containers").join(id.as_str());
        let cgroup = cgroup::directory(&request.cgroup)?;
        let pid_namespace = self.pid_namespace(&request)?;
        let path = LogPath::new(&request.log_path, "").map_err(|error| Fault::invalid(error.to_string()))?;
        let mut log = ContainerLog::open(path).map_err(|error| Fault::state(error.to_string()))?;
        let streams = make_streams(&request).map_err(Fault::io("cannot make the container's streams"))?;
        let watched = "cannot read the container's output";
        for (stream, end) in [Stream::Stdout, Stream::Stderr].into_iter().zip(streams.outputs.into_iter().flatten()) {
            log.add_source(stream, end).map_err(Fault::io(watched))?;
        }
        let pair = || protocol::pair().map_err(Fault::io("cannot make a socket pair"));
        let ((report, creators), (start_report, inits)) = (pair()?, pair()?);
        let timeout = match request.timeout_ms {
            0 => TIMEOUT_DEFAULT,
            ms => Duration::from_millis(ms),
        };
        let mut container = Container {
            id: id.to_string(),
            bundle: bundle.clone(),
            phase: ContainerPhase::Creating,
            pid: 0,
            mount_namespace: 0,
            cgroup: cgroup.clone(),
            pid_mode: request.pid(),
            oom_score_adj: request.oom_score_adj,
            created_at: 0,
            started_at: 0,
            exit: None,
            stdin: streams.stdin,
            terminal: None,
            log,
            creation: None,
            start_report: Some(start_report),
            start_fault: None,
            starter: None,
            seccomp: None,
            watched: [false; 2],
        };
        let job = Job {
            runtime_dir: container.runtime_dir(),
            request,
            bundle,
            cgroup,
            pod_cgroup: cgroup::directory(&self.spec.cgroup)?,
            pid_namespace,
            rootfs,
            stdio: streams.theirs,
            report: creators,
            start_report: inits,
            supervisor: &self.own.process,
        };
        let pid = fork::fork_and_run(None, || create_and_report(&job)).map_err(Fault::io("cannot fork a creator"))?;
        let deadline = Some(Instant::now() + timeout);
        container.creation = Some(Creation { asker, pid, report, deadline, late: false });
        self.containers.insert(id.to_string(), container);
        Ok(())
    }

    fn checked_id(&self, request: &wire::CreateContainer) -> Result<ContainerId> {
        let id: ContainerId = request.container_id.parse().map_err(|e: crate::store::IdError| Fault::invalid(e.to_string()))?;
        if self.shutdown.is_some() {
            return Err(Fault::state("the pod is being shut down"));
        }
        if self.containers.contains_key(id.as_str()) {
            return Err(Fault::new(ErrorKind::AlreadyExists, format!("container {id} is in the pod already")));
        }
        if self.containers.len() >= CONTAINERS_LIMIT {
            return Err(Fault::new(ErrorKind::ResourceExhausted, "the pod holds too many containers; remove some"));
        }
        Ok(id)
    }

    fn pid_namespace(&self, request: &wire::CreateContainer) -> Result<Option<String>> {
        let pid = match request.pid() {
            NamespaceMode::Container | NamespaceMode::Node => return Ok(None),
            NamespaceMode::Pod => {
                self.init.ok_or_else(|| Fault::state("the pod was made without a PID namespace to share"))?
            }
            NamespaceMode::Target => {
                let target = self.containers.get(&request.pid_target);
                let target = target.filter(|target| target.is_alive());
                target.ok_or_else(|| Fault::state(format!("container {} does not run", request.pid_target)))?.pid
            }
        };
        Ok(Some(format!("/proc/{pid}/ns/pid")))
    }

    /// A creator has ended: its report tells what came of it.
    pub(super) fn creation_ended(&mut self, id: &str, ending: Ending) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(creation) = container.creation.take() else { return };
        match read_report(&creation, ending) {
            Ok((created, terminal)) => match self.created(id, &created, terminal) {
                Ok(()) => self.answer(creation.asker, Ok(Answer::of(reply::Result::CreateContainer(created)))),
                Err(fault) => self.undo(id, &creation, fault),
            },
            Err(fault) => self.undo(id, &creation, fault),
        }
    }

    fn created(&mut self, id: &str, reply: &wire::CreateContainerReply, terminal: Option<OwnedFd>) -> Result<()> {
        let own_namespace = leftovers::mount_namespace(std::process::id() as i32).map_err(Fault::io("cannot look at this process"))?;
        let container = self.container(id)?;
        container.pid = reply.pid;
        container.created_at = reply.created_at;
        container.phase = ContainerPhase::Created;
        let gone = "the container's first process is gone already";
        container.mount_namespace = leftovers::mount_namespace(reply.pid).map_err(Fault::io(gone))?;
        if container.mount_namespace == own_namespace {
            return Err(Fault::invalid("the container's spec has no mount namespace"));
        }
        ProcessRecord::of(reply.pid, container.cgroup.clone())
            .and_then(|record| record.write(&container.bundle.join("process.json")))
            .map_err(Fault::io("cannot record the container's process"))?;
        if let Some(terminal) = terminal {
            let copy = terminal.try_clone().map_err(Fault::io("cannot use the container's terminal"))?;
            container.log.add_source(Stream::Stdout, copy).map_err(Fault::io("cannot read the container's terminal"))?;
            container.terminal = Some(terminal);
        }
        self.after_log(id);
        // It may have ended before it was known.
        if let Some(at) = self.strays.iter().position(|stray| stray.pid == reply.pid) {
            let ending = self.strays.remove(at);
            ending.into_iter().for_each(|ending| self.container_ended(id, ending));
        }
        Ok(())
    }

    fn undo(&mut self, id: &str, creation: &Creation, fault: Fault) {
        self.unwatch_output(id);
        let mut fault = fault;
        if let Some(container) = self.containers.remove(id) {
            // What the container's own first process said is more to the point than what the runtime made of it.
            fault = container.start_report.as_ref().and_then(start::read_fault).unwrap_or(fault);
            creation.kill(&container.bundle);
            container.signal_all(Signal::KILL);
            let _ = rustix::mount::unmount(container.bundle.join("rootfs"), UnmountFlags::DETACH);
            let _ = requests::remove_tree(&container.runtime_dir());
            let _ = fs::remove_file(container.bundle.join("process.json"));
            if let Some(directory) = &container.cgroup {
                let _ = cgroup::remove(directory);
            }
        }
        let fault = if creation.late {
            Fault::new(ErrorKind::DeadlineExceeded, format!("container {id} was not created in time and was given up"))
        } else {
            fault
        };
        self.answer(creation.asker, Err(fault));
    }

    /// The watchdog: what is not created in time is killed; its creator's end then undoes the rest.
    pub(super) fn expire_creation(&mut self, id: &str, now: Instant) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(creation) = container.creation.as_mut().filter(|c| c.deadline.is_some_and(|at| at <= now)) {
            creation.deadline = None;
            creation.late = true;
            creation.kill(&container.bundle);
        }
    }
}

fn make_streams(request: &wire::CreateContainer) -> std::io::Result<Streams> {
    if request.tty {
        return Ok(Streams { theirs: None, stdin: None, outputs: None });
    }
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (stdin, ours) = if request.stdin {
        let (reader, writer) = pipe()?;
        (reader, Some(writer))
    } else {
        (rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, None)
    };
    let (out, err) = (pipe()?, pipe()?);
    Ok(Streams { theirs: Some([stdin, out.1, err.1]), stdin: ours, outputs: Some([out.0, err.0]) })
}

/// The container's first process, and its terminal if it has one.
fn read_report(creation: &Creation, ending: Ending) -> Result<(wire::CreateContainerReply, Option<OwnedFd>)> {
    let silent = || {
        let how = if ending.signal != 0 { format!("signal {}", ending.signal) } else { format!("code {}", ending.exit_code) };
        Fault::new(ErrorKind::Internal, format!("the creator of the container ended with {how} and said nothing"))
    };
    let _ = rustix::io::ioctl_fionbio(&creation.report, true);
    let received = protocol::receive::<wire::Reply>(&creation.report, &mut vec![0; MESSAGE_LIMIT]).map_err(|_| silent())?;
    match received.message.result {
        Some(reply::Result::CreateContainer(created)) => Ok((created, received.descriptors.into_iter().next())),
        Some(reply::Result::Error(error)) => Err(error.into()),
        _ => Err(silent()),
    }
}

/// The creator's life. Its exit code says nothing; its report does.
fn create_and_report(job: &Job<'_>) -> i32 {
    let outcome = create(job);
    let (result, terminal) = match outcome {
        Ok((created, terminal)) => (reply::Result::CreateContainer(created), terminal),
        Err(fault) => (reply::Result::Error(fault.into()), None),
    };
    let descriptors: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
    let reply = wire::Reply { id: 1, result: Some(result) };
    i32::from(protocol::send(&job.report, &reply, &descriptors).is_err())
}

fn create(job: &Job<'_>) -> Result<(wire::CreateContainerReply, Option<OwnedFd>)> {
    signals::unblock()?;
    rustix::process::setpgid(None, None).map_err(Fault::io("cannot lead a process group"))?;
    let mut keep: Vec<RawFd> = vec![job.rootfs.as_raw_fd(), job.report.as_raw_fd()];
    keep.extend([job.start_report.as_raw_fd(), job.supervisor.as_raw_fd()]);
    keep.extend(job.stdio.iter().flatten().map(AsRawFd::as_raw_fd));
    descriptors::close_all_except(&keep).map_err(Fault::io("cannot close stray descriptors"))?;
    sandbox::set_oom_score(job.request.oom_score_adj).map_err(Fault::io("cannot set the container's oom score"))?;
    let rootfs = attach_root(job)?;
    let made = runtime::create(runtime::Order {
        id: &job.request.container_id,
        bundle: &job.bundle,
        state: &job.runtime_dir,
        limited: job.cgroup.is_some(),
        controllers: job.pod_cgroup.as_deref().map(cgroup::controllers),
        pid_namespace: job.pid_namespace.as_deref(),
        own_pid_namespace: job.request.pid() != NamespaceMode::Node,
        stdio: job.stdio.as_ref(),
        start_report: &job.start_report,
        supervisor: job.supervisor,
    })?;
    if let Some(directory) = job.cgroup.as_ref().filter(|directory| !cgroup::holds(directory, made.pid)) {
        signal_process(made.pid, Signal::KILL);
        return Err(Fault::state(format!("the container did not get into its cgroup {}", directory.display())));
    }
    // The container has a mount of its own; ours would only be one more for the next container to copy.
    let _ = rustix::mount::unmount(&rootfs, UnmountFlags::DETACH);
    if let Err(fault) = propagate(made.pid, &job.request.propagations) {
        signal_process(made.pid, Signal::KILL);
        return Err(fault);
    }
    let reply = wire::CreateContainerReply { pid: made.pid, created_at: now(), not_enforced: made.not_enforced };
    Ok((reply, made.terminal))
}

fn attach_root(job: &Job<'_>) -> Result<PathBuf> {
    let target = job.bundle.join("rootfs");
    match fs::create_dir(&target) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Fault::io(format!("cannot make {}", target.display()))(error));
        }
        _ => {}
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&job.rootfs, "", rustix::fs::CWD, &target, flags)
        .map_err(Fault::io(format!("cannot attach the root file system at {}", target.display())))?;
    preflight::check(&job.rootfs)?;
    Ok(target)
}

/// Mount points whose propagation the runtime ignores. Last of all that the creator does: it stays in the container's mounts.
fn propagate(pid: i32, propagations: &[wire::Propagation]) -> Result<()> {
    if propagations.is_empty() {
        return Ok(());
    }
    let process = Pid::from_raw(pid).ok_or_else(|| Fault::state("the container has no process"))?;
    let process = rustix::process::pidfd_open(process, PidfdFlags::empty())
        .map_err(Fault::io("cannot open the container's process"))?;
    rustix::thread::move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::MOUNT)
        .map_err(Fault::io("cannot enter the container's mounts"))?;
    for wanted in propagations {
        let mode = match wanted.mode.as_str() {
            "shared" => Propagation::Shared,
            "slave" => Propagation::Slave,
            "private" => Propagation::Private,
            other => return Err(Fault::invalid(format!("{other:?} is not a mount propagation"))),
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(rustix::fs::CWD, &wanted.destination, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
            .map_err(std::io::Error::from)
            .and_then(|mount| propagation::set(mount.as_fd(), mode))
            .map_err(Fault::io(format!("cannot make the mount {} {}", wanted.destination, wanted.mode)))?;
    }
    Ok(())
}
