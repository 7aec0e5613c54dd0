//! The creator: a child of the supervisor that makes one container and ends. It attaches the root and checks it, calls
//! the runtime, verifies what came of it, and reports once.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::MoveMountFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use super::container::signal_process;
use super::dev_mount::DevMounts;
use super::fault::{Fault, Result};
use super::pod::now;
use super::user_namespace::UserNamespace;
use super::{cgroup, preflight, runtime, sandbox, signals, sources, volumes};
use crate::executor::protocol;
use crate::proto::supervisor as wire;
use crate::proto::supervisor::{NamespaceMode, reply};
use crate::sys::crash::{self, Point};
use crate::sys::descriptors;
use crate::sys::namespaces;
use crate::sys::propagation::{self, Propagation};

/// What the creator works with.
pub struct Job<'a> {
    pub(super) request: wire::CreateContainer,
    pub(super) bundle: PathBuf,
    pub(super) runtime_dir: PathBuf,
    pub(super) cgroup: Option<PathBuf>,
    pub(super) pod_cgroup: Option<PathBuf>,
    /// PID namespace to be joined.
    pub(super) pid_namespace: Option<OwnedFd>,
    pub(super) rootfs: OwnedFd,
    pub(super) volumes: Vec<OwnedFd>,
    pub(super) stdio: Option<[OwnedFd; 3]>,
    pub(super) report: OwnedFd,
    pub(super) start_report: OwnedFd,
    pub(super) supervisor: &'a OwnedFd,
    /// Of the pod, where it has one of its own.
    pub(super) user_namespace: Option<&'a UserNamespace>,
}

/// The creator's life. Its exit code says nothing; its report does.
pub fn run(job: &Job<'_>) -> i32 {
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
    keep.extend(job.volumes.iter().map(AsRawFd::as_raw_fd));
    keep.extend(job.stdio.iter().flatten().map(AsRawFd::as_raw_fd));
    keep.extend(job.pid_namespace.as_ref().map(AsRawFd::as_raw_fd));
    keep.extend(job.user_namespace.map(|namespace| namespace.descriptor().as_raw_fd()));
    descriptors::close_all_except(&keep).map_err(Fault::io("cannot close stray descriptors"))?;
    sandbox::set_oom_score(job.request.oom_score_adj).map_err(Fault::io("cannot set the container's oom score"))?;
    // Nothing of what is attached here is seen, or left, outside.
    namespaces::unshare(UnshareFlags::NEWNS).map_err(Fault::io("cannot make mounts of the creator's own"))?;
    let pod = job.bundle.parent().and_then(Path::parent).unwrap_or(&job.bundle);
    let moved = sources::take(&job.bundle, pod, job.user_namespace, job.volumes.len())?;
    attach_root(job)?;
    for (number, volume) in job.volumes.iter().enumerate() {
        volumes::attach(&job.bundle, number, volume)?;
    }
    crash::reach(Point::CreatorBegun).map_err(Fault::io("cannot call the runtime"))?;
    let made = runtime::create(runtime::Order {
        id: &job.request.container_id,
        bundle: &job.bundle,
        state: &job.runtime_dir,
        limited: job.cgroup.is_some(),
        controllers: job.pod_cgroup.as_deref().map(cgroup::controllers),
        pid_namespace: job.pid_namespace.as_ref().map(descriptors::path),
        own_pid_namespace: job.request.pid() != NamespaceMode::Node,
        stdio: job.stdio.as_ref(),
        start_report: &job.start_report,
        supervisor: job.supervisor,
        filters: Path::new(&job.request.seccomp_store),
        user_namespace: job.user_namespace,
        moved: &moved,
    })?;
    if let Err(error) = crash::reach(Point::CreatorMade) {
        signal_process(made.pid, Signal::KILL);
        return Err(Fault::io("cannot go on with what the runtime made")(error));
    }
    if let Some(directory) = job.cgroup.as_ref().filter(|directory| !cgroup::holds(directory, made.pid)) {
        signal_process(made.pid, Signal::KILL);
        return Err(Fault::state(format!("the container did not get into its cgroup {}", directory.display())));
    }
    if let Some(Err(fault)) = made.below_proc.as_deref().map(|wanted| preflight::check_mounts(made.pid, wanted)) {
        signal_process(made.pid, Signal::KILL);
        return Err(fault);
    }
    if let Err(fault) = settle_mounts(made.pid, &made.in_dev, &job.request.propagations) {
        signal_process(made.pid, Signal::KILL);
        return Err(fault);
    }
    let reply = wire::CreateContainerReply { pid: made.pid, created_at: now(), not_enforced: made.not_enforced };
    Ok((reply, made.terminal))
}

fn attach_root(job: &Job<'_>) -> Result<()> {
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
    preflight::check(&job.rootfs)
}

/// What the runtime does not do: mounts in /dev, and mount points whose propagation it ignores. Last of all that the
/// creator does: it stays in the container's mounts.
fn settle_mounts(pid: i32, in_dev: &DevMounts, propagations: &[wire::Propagation]) -> Result<()> {
    if propagations.is_empty() && in_dev.is_empty() {
        return Ok(());
    }
    let process = Pid::from_raw(pid).ok_or_else(|| Fault::state("the container has no process"))?;
    let process = rustix::process::pidfd_open(process, PidfdFlags::empty())
        .map_err(Fault::io("cannot open the container's process"))?;
    rustix::thread::move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::MOUNT)
        .map_err(Fault::io("cannot enter the container's mounts"))?;
    in_dev.attach()?;
    for wanted in propagations {
        let mode = match wanted.mode.as_str() {
            "shared" => Propagation::Shared,
            "slave" => Propagation::Slave,
            "private" => Propagation::Private,
            other => return Err(Fault::invalid(format!("{other:?} is not a mount propagation"))),
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let place = wanted.destination.as_str();
        let set = rustix::fs::openat2(rustix::fs::CWD, place, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
            .map_err(std::io::Error::from)
            .and_then(|mount| propagation::set(mount.as_fd(), mode));
        match set {
            // Another mount lies over it: nobody sees what arrives there.
            Err(error) if mode == Propagation::Private && is_covered(&error) => {}
            other => other.map_err(Fault::io(format!("cannot make the mount {place} {}", wanted.mode)))?,
        }
    }
    Ok(())
}

/// There is nothing at a mount's place, or something that is no mount.
fn is_covered(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EINVAL))
}
