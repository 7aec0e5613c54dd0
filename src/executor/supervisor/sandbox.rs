//! The birth of a supervisor: from a fork of the template to the pod's own namespaces, then the loop until the pod's
//! end.
//!
//! What it leaves in STATE_DIR, beside what requests name: `shm/` (mount point, in this process's mount namespace
//! only), `supervisor.json` and `containers/ID/process.json` (who is to be killed if this process is; see
//! `crate::executor::leftovers`), `supervisor.log` (what a panic would say).

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::UnshareFlags;

use super::fault::{Fault, Result};
use super::pod::Pod;
use super::user_namespace::UserNamespace;
use super::{cgroup, pod_init, signals, sysctl, template};
use crate::executor::leftovers::ProcessRecord;
use crate::executor::protocol;
use crate::proto::supervisor as wire;
use crate::proto::supervisor::{NamespaceMode, SandboxSpec};
use crate::sys::crash::{self, Point};
use crate::sys::{descriptors, loopback};

/// Directory in STATE_DIR that becomes /dev/shm of the pod's containers.
pub const SHM_DIRECTORY: &str = "shm";
/// What a panic, or a word of a child's before it is a program, goes to.
const OWN_LOG: &str = "supervisor.log";
/// Size of /dev/shm where the request names none.
const SHM_DEFAULT_BYTES: u64 = 64 << 20;
/// Highest and lowest score that the kernel knows.
const OOM_SCORE_RANGE: std::ops::RangeInclusive<i32> = -1000..=1000;
/// Exit code of a supervisor that could not be born; its daemon has read why.
const STILLBORN: i32 = 1;

/// What the template hands over.
pub struct Birth {
    /// Id of the spawn request.
    pub request: u64,
    /// What the sandbox is made of.
    pub spec: SandboxSpec,
    /// Bound at STATE_DIR/supervisor.sock.
    pub listener: OwnedFd,
    /// Where the answer goes: the template's socket, closed once it is given.
    pub reply: OwnedFd,
}

/// The whole life of a supervisor, in the process that the template forked. Answers its exit code.
pub fn live(birth: Birth) -> i32 {
    let Birth { request, spec, listener, reply } = birth;
    // The template's own socket is not for its children: the daemon has to hear the template's end.
    if descriptors::close_all_except(&[listener.as_raw_fd(), reply.as_raw_fd()]).is_err() {
        return STILLBORN;
    }
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let (answer, pod) = match make(spec, listener) {
        Ok(pod) => (wire::SpawnReply { id: request, pid, error: None }, Some(pod)),
        Err(fault) => (wire::SpawnReply { id: request, pid: 0, error: Some(fault.into()) }, None),
    };
    let told = protocol::send(&reply, &answer, &[]);
    drop(reply);
    match (pod, told) {
        (Some(pod), Ok(())) => pod.run(),
        _ => STILLBORN,
    }
}

fn make(spec: SandboxSpec, listener: OwnedFd) -> Result<Pod> {
    template::assert_one_thread()?;
    let state_dir = checked_directory(&spec.state_dir, "state")?;
    let record_dir = checked_directory(&spec.record_dir, "record")?;
    rustix::process::setsid().map_err(Fault::io("cannot start a session"))?;
    let _ = rustix::thread::set_name(c"cricket-pod");
    speak_into(&state_dir)?;
    let children = signals::watch_children()?;
    set_oom_score(spec.oom_score_adj).map_err(Fault::io("cannot set the supervisor's oom score"))?;
    let user_namespace = make_namespaces(&spec)?;
    mount_shm(&spec, &state_dir)?;
    crash::reach(Point::SupervisorNamespaces).map_err(Fault::io("cannot make the pod's namespaces"))?;
    if spec.cgroup.is_empty() {
        cgroup::stand_in()?;
    }
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(Fault::io("cannot become the reaper of the pod"))?;
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
        .map_err(Fault::io("cannot open a descriptor of this process"))?;
    let init = match spec.pid() {
        NamespaceMode::Pod => Some(pod_init::start(&own, user_namespace.as_ref())?),
        _ => None,
    };
    record(&state_dir, init)?;
    crash::reach(Point::SupervisorRecorded).map_err(Fault::io("cannot record the supervisor's process"))?;
    let pod = Pod::new(spec, state_dir, record_dir, listener, children, own, init)?;
    Ok(Pod { user_namespace, ..pod })
}

fn checked_directory(path: &str, what: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    if !path.is_absolute() || !path.is_dir() {
        return Err(Fault::invalid(format!(
            "the pod's {what} directory {path:?} is not an existing absolute directory"
        )));
    }
    Ok(path)
}

/// Output goes to a file of the pod, input comes from nowhere: the daemon's streams may be pipes that nobody reads any
/// more, or that somebody reads to their end.
fn speak_into(state_dir: &Path) -> Result<()> {
    let path = state_dir.join(OWN_LOG);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(Fault::io(format!("cannot open {}", path.display())))?;
    let failed = "cannot redirect the standard streams";
    let null =
        rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(Fault::io(failed))?;
    rustix::stdio::dup2_stdin(&null).map_err(Fault::io(failed))?;
    rustix::stdio::dup2_stdout(&file).map_err(Fault::io(failed))?;
    rustix::stdio::dup2_stderr(&file).map_err(Fault::io(failed))
}

/// With a user namespace of the pod's own, the others belong to it; this process only lives in them.
fn make_namespaces(spec: &SandboxSpec) -> Result<Option<UserNamespace>> {
    let user_namespace = UserNamespace::of(spec)?;
    let mut flags = UnshareFlags::NEWNS;
    if user_namespace.is_none() {
        flags |= shared_namespaces(spec);
    }
    crate::sys::namespaces::unshare(flags).map_err(Fault::io("cannot make the pod's namespaces"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(Fault::io("cannot keep the pod's mounts to itself"))?;
    if !spec.hostname.is_empty() {
        rustix::system::sethostname(spec.hostname.as_bytes())
            .map_err(Fault::io(format!("cannot set the host name {:?}", spec.hostname)))?;
    }
    if spec.network() != NamespaceMode::Node {
        loopback::up().map_err(Fault::io("cannot bring the loopback interface up"))?;
    }
    // In a namespace of another owner they are not this process's to write.
    user_namespace.as_ref().map_or_else(|| sysctl::apply(spec), |_| Ok(()))?;
    Ok(user_namespace)
}

/// What all containers of the pod share.
pub fn shared_namespaces(spec: &SandboxSpec) -> UnshareFlags {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWNET, spec.network() != NamespaceMode::Node);
    flags.set(UnshareFlags::NEWIPC, spec.ipc() != NamespaceMode::Node);
    flags.set(UnshareFlags::NEWUTS, !spec.hostname.is_empty());
    flags
}

fn mount_shm(spec: &SandboxSpec, state_dir: &Path) -> Result<()> {
    if spec.ipc() == NamespaceMode::Node {
        return Ok(());
    }
    let target = state_dir.join(SHM_DIRECTORY);
    match fs::create_dir(&target) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Fault::io(format!("cannot make {}", target.display()))(error));
        }
        _ => {}
    }
    let size = if spec.shm_size_bytes == 0 { SHM_DEFAULT_BYTES } else { spec.shm_size_bytes };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Root of the pod: without a user namespace of its own it is this process's.
    let owner = spec.uid_maps.first().map_or(0, |map| map.host_id);
    let options = format!("mode=1777,size={size},uid={owner},gid={owner}");
    mount(Some("shm"), &target, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(Fault::io(format!("cannot mount the pod's /dev/shm of {size} bytes")))
}

/// Sets the score of this process, or the nearest that it may have: who is not privileged cannot lower it.
pub fn set_oom_score(wanted: i32) -> std::io::Result<()> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let wanted = wanted.clamp(*OOM_SCORE_RANGE.start(), *OOM_SCORE_RANGE.end());
    let current: i32 = fs::read_to_string(PATH)?.trim().parse().unwrap_or(0);
    if wanted == current {
        return Ok(());
    }
    match fs::write(PATH, wanted.to_string()) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && wanted < current => Ok(()),
        result => result,
    }
}

/// Whether the process behind a descriptor has ended.
pub fn is_dead(process: impl AsFd) -> bool {
    let mut poll = [PollFd::new(&process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(rustix::event::poll(&mut poll, Some(&now)), Ok(0))
}

/// Whether the other end of a socket is closed.
pub fn is_closed(socket: impl AsFd) -> bool {
    let mut poll = [PollFd::new(&socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&now)).is_err() || poll[0].revents().contains(PollFlags::HUP)
}

fn record(state_dir: &Path, init: Option<i32>) -> Result<()> {
    let own = Pid::as_raw(Some(rustix::process::getpid()));
    ProcessRecord::of_supervisor(own, init)
        .and_then(|record| record.write(&state_dir.join("supervisor.json")))
        .map_err(Fault::io("cannot record the supervisor's process"))
}
