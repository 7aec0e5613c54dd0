//! The creation of a container, the supervisor's side: streams, the forked creator (`creator.rs`), its deadline, and
//! what is done or undone when it has ended.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};

use super::connection::{Answer, Requester};
use super::container::{Container, signal_process};
use super::creator::{self, Job};
use super::fault::{Fault, Result};
use super::log::{ContainerLog, LogPath, Stream};
use super::pod::Pod;
use super::signals::Ending;
use super::{cgroup, requests, runtime, start};
use crate::executor::leftovers::{self, ProcessRecord};
use crate::executor::protocol::{self, MESSAGE_LIMIT};
use crate::proto::supervisor as wire;
use crate::proto::supervisor::{ContainerPhase, ErrorKind, NamespaceMode, reply};
use crate::store::ContainerId;
use crate::sys::crash::{self, Point};
use crate::sys::fork;

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
        for pid in [Some(self.pid), runtime::first_process(bundle)].into_iter().flatten() {
            // It may have been waited for: then the number may be somebody else's.
            if is_child(pid) {
                signal_process(pid, Signal::KILL);
            }
        }
    }
}

/// The container's ends of its streams (`None`: a terminal is made inside), and ours.
struct Streams {
    theirs: Option<[OwnedFd; 3]>,
    stdin: Option<OwnedFd>,
    outputs: Option<[OwnedFd; 2]>,
}

impl Pod {
    /// Begins to create a container; the answer comes when its creator has ended.
    pub(super) fn create(
        &mut self,
        asker: Requester,
        request: wire::CreateContainer,
        rootfs: OwnedFd,
        volumes: Vec<OwnedFd>,
    ) -> Result<()> {
        if usize::try_from(request.volumes) != Ok(volumes.len()) {
            return Err(Fault::invalid("a container has one descriptor for its root and one for each volume"));
        }
        let id = self.checked_id(&request)?;
        let bundle = self.state_dir.join("containers").join(id.as_str());
        let cgroup = cgroup::directory(&request.cgroup)?;
        let pid_namespace = self.pid_namespace(&request)?;
        let path = LogPath::new(&request.log_path, &request.log_directory)
            .map_err(|error| Fault::invalid(error.to_string()))?;
        let streams = make_streams(&request).map_err(Fault::io("cannot make the container's streams"))?;
        let opened = ContainerLog::open(path, &mut self.scratch);
        let mut log = opened.map_err(|error| Fault::state(error.to_string()))?;
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
            volumes,
            stdio: streams.theirs,
            report: creators,
            start_report: inits,
            supervisor: &self.own,
            user_namespace: self.user_namespace.as_ref(),
        };
        let pid = fork::fork_and_run(None, || creator::run(&job)).map_err(Fault::fork("cannot fork a creator"))?;
        let deadline = Some(Instant::now() + timeout);
        container.creation = Some(Creation { asker, pid, report, deadline, late: false });
        self.containers.insert(id.to_string(), container);
        Ok(())
    }

    fn checked_id(&self, request: &wire::CreateContainer) -> Result<ContainerId> {
        let id: ContainerId =
            request.container_id.parse().map_err(|e: crate::store::IdError| Fault::invalid(e.to_string()))?;
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

    fn pid_namespace(&self, request: &wire::CreateContainer) -> Result<Option<OwnedFd>> {
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
        // By descriptor: from a user namespace of the pod's own its path could not be opened any more.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(format!("/proc/{pid}/ns/pid"), flags, Mode::empty())
            .map(Some)
            .map_err(Fault::io("cannot open the PID namespace that is to be joined"))
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
        let own_namespace =
            leftovers::mount_namespace(std::process::id() as i32).map_err(Fault::io("cannot look at this process"))?;
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
        crash::reach(Point::SupervisorCreated).map_err(Fault::io("cannot record the container's process"))?;
        if let Some(terminal) = terminal {
            let copy = terminal.try_clone().map_err(Fault::io("cannot use the container's terminal"))?;
            container
                .log
                .add_source(Stream::Stdout, copy)
                .map_err(Fault::io("cannot read the container's terminal"))?;
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
            let _ = requests::remove_tree(&container.runtime_dir());
            let _ = fs::remove_file(container.bundle.join("process.json"));
            if let Some(directory) = &container.cgroup {
                let _ = cgroup::remove(directory);
            }
            container.log.close(&mut self.scratch);
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

fn is_child(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat.rfind(')').and_then(|at| stat[at + 1..].split_ascii_whitespace().nth(1)?.parse().ok());
    parent == Some(std::process::id())
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
        let how =
            if ending.signal != 0 { format!("signal {}", ending.signal) } else { format!("code {}", ending.exit_code) };
        Fault::new(ErrorKind::Internal, format!("the creator of the container ended with {how} and said nothing"))
    };
    let _ = rustix::io::ioctl_fionbio(&creation.report, true);
    let received =
        protocol::receive::<wire::Reply>(&creation.report, &mut vec![0; MESSAGE_LIMIT]).map_err(|_| silent())?;
    match received.message.result {
        Some(reply::Result::CreateContainer(created)) => Ok((created, received.descriptors.into_iter().next())),
        Some(reply::Result::Error(error)) => Err(error.into()),
        _ => Err(silent()),
    }
}
