//! What a forked child does to become a process of a container: libcontainer's own way in forgets the seccomp filter,
//! the user namespace, limits and AppArmor.
//!
//! The order matters. In a helper that the container cannot see ([`prepare`]): descriptors are closed, settings are
//! read, the score is set, mounts are joined, and capabilities that are neither the process's nor needed go; from there
//! on every path is the container's. Then, in its PID namespace ([`enter`]), ids and capabilities go before the last
//! filter, and nothing happens between that and execve but a look at the parent.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use caps::Capability;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::process::Signal;
use rustix::thread::ThreadNameSpaceType;

use super::fault::{Fault, Result};
use super::process_settings::{Capabilities, Process, Settings, find_program, path_of};
use super::seccomp::Filter;
use super::user_namespace::UserNamespace;
use super::{credentials, filters, requests, runtime, sandbox, signals};
use crate::executor::protocol;
use crate::proto::supervisor as wire;
use crate::proto::supervisor::from_supervisor::Message;
use crate::proto::supervisor::reply;
use crate::sys::{descriptors, fork};

/// What the rest of the way needs: giving streams away, limits, ids, the filter.
const JOINING: [Capability; 6] = [
    Capability::CAP_CHOWN,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_RESOURCE,
];
/// Exit code of a child that did not get as far as its program. Nobody reports it: the answer has said why.
const FAILED: i32 = 126;
/// Where the terminals of a container are made.
const PTMX: &str = "/dev/pts/ptmx";
/// What a program on a terminal finds where its image says nothing.
const TERM: &str = "TERM=xterm";

/// What the child is to become.
pub struct Entry<'a> {
    /// The command.
    pub request: &'a wire::Exec,
    /// Of the container.
    pub bundle: &'a Path,
    /// The container's first process.
    pub target: &'a OwnedFd,
    /// Standard streams; none: a terminal is made.
    pub stdio: Option<&'a [OwnedFd; 3]>,
    /// Where a [`Report`] goes; closed by execve.
    pub report: &'a OwnedFd,
    /// Of the container.
    pub oom_score_adj: i32,
    /// Of the pod, where it has one of its own.
    pub user_namespace: Option<&'a UserNamespace>,
}

/// What was read, done and opened while nobody in the container could see it.
pub struct Prepared {
    process: Process,
    capabilities: Capabilities,
    filter: Option<Filter>,
}

/// What a child tells its supervisor before it is somebody else's program. On the wire each is a reply: an exec reply
/// with the terminal's master, or an error.
#[derive(Debug)]
pub enum Report {
    /// The descriptor beside it is the terminal's master.
    Terminal,
    /// It will not run.
    Failed(Fault),
}

impl Report {
    /// From the wire.
    pub fn read(message: &wire::FromSupervisor) -> Option<Self> {
        let Some(Message::Reply(wire::Reply { result: Some(result), .. })) = &message.message else { return None };
        match result {
            reply::Result::Exec(_) => Some(Self::Terminal),
            reply::Result::Error(error) => Some(Self::Failed(error.clone().into())),
            _ => None,
        }
    }

    fn send(self, to: &OwnedFd, descriptor: Option<&OwnedFd>) -> Result<()> {
        let result = match self {
            Self::Terminal => reply::Result::Exec(wire::ExecReply { pid: 0 }),
            Self::Failed(fault) => reply::Result::Error(fault.into()),
        };
        let reply = Message::Reply(wire::Reply { id: 1, result: Some(result) });
        let descriptors: Vec<_> = descriptor.iter().map(|fd| fd.as_fd()).collect();
        protocol::send(to, &wire::FromSupervisor { message: Some(reply) }, &descriptors)
            .map_err(Fault::because("cannot report to the supervisor"))
    }
}

/// In the helper, which is in none of the container's namespaces when it begins, and never in its PID namespace: a
/// process of the container with CAP_SYS_PTRACE would read the node's files through the root directory or a descriptor
/// of the child.
pub fn prepare(entry: &Entry<'_>, helper: RawFd) -> Result<Prepared> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(Fault::io("cannot become non-dumpable"))?;
    keep_only(entry, helper)?;
    let settings = Settings::read(entry.bundle)?;
    let mut process = settings.process;
    let capabilities = process.capabilities.take().unwrap_or_default();
    let filter = settings.linux.seccomp.is_some().then(|| filters::of_container(entry.bundle)).transpose()?;
    process.apparmor_profile.as_deref().map_or(Ok(()), apply_profile)?;
    sandbox::set_oom_score(entry.oom_score_adj).map_err(Fault::io("cannot set the process's oom score"))?;
    let last_capability = credentials::last_capability();
    if let (Some(namespace), Some(stdio)) = (entry.user_namespace, entry.stdio) {
        // From inside, a pipe of somebody outside cannot be given to anybody.
        runtime::give_pipes_to(namespace.outside(process.user.uid, process.user.gid)?, stdio)?;
    }
    let namespaces = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP;
    rustix::thread::move_into_thread_name_spaces(entry.target.as_fd(), namespaces)
        .map_err(Fault::io("cannot join the container's namespaces"))?;
    if let Some(namespace) = entry.user_namespace {
        namespace.enter().map_err(Fault::io("cannot join the pod's user namespace"))?;
    }
    credentials::narrow_to(&capabilities, &JOINING, last_capability)?;
    Ok(Prepared { process, capabilities, filter })
}

/// The child's life until its program runs. It returns only when that fails.
pub fn enter(entry: &Entry<'_>, prepared: Result<Prepared>) -> i32 {
    if let Err(fault) = prepared.and_then(|prepared| join(entry, prepared)) {
        let _ = Report::Failed(fault).send(entry.report, None);
    }
    FAILED
}

fn join(entry: &Entry<'_>, prepared: Prepared) -> Result<()> {
    let Prepared { process, capabilities, filter } = prepared;
    rustix::process::setsid().map_err(Fault::io("cannot start a session"))?;
    let owner = (Uid::from_raw(process.user.uid), Gid::from_raw(process.user.gid));
    set_streams(entry, owner)?;
    credentials::set_limits(&process)?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(Fault::io("cannot set no_new_privs"))?;
    }
    let inside = rustix::process::chdir(process.cwd.as_str());
    let early = filter.as_ref().filter(|_| !process.no_new_privileges);
    // Without no_new_privs a filter needs a capability that is about to go.
    early.map_or(Ok(()), Filter::install)?;
    credentials::set_ids(&process)?;
    credentials::set_capabilities(&capabilities)?;
    // Some directories are only the user's, some only root's.
    inside
        .or_else(|_| rustix::process::chdir(process.cwd.as_str()))
        .map_err(Fault::io(format!("cannot change to the working directory {:?}", process.cwd)))?;
    verify_inside()?;
    let (program, arguments, environment) = command(entry.request, &process)?;
    signals::reset()?;
    die_with_supervisor(entry)?;
    descriptors::close_all_on_exec().map_err(Fault::io("cannot close descriptors"))?;
    let late = filter.as_ref().filter(|_| process.no_new_privileges);
    late.map_or(Ok(()), Filter::install)?;
    let Err(errno) = nix::unistd::execve(&program, &arguments, &environment);
    Err(Fault::image(format!("cannot execute {program:?} in the container: {}", std::io::Error::from(errno))))
}

/// Nothing of the supervisor's comes along: the logs, pipes and sockets of the pod end here.
fn keep_only(entry: &Entry<'_>, helper: RawFd) -> Result<()> {
    let mut keep: Vec<RawFd> = vec![entry.target.as_raw_fd(), entry.report.as_raw_fd(), helper];
    keep.extend(entry.user_namespace.map(|namespace| namespace.descriptor().as_raw_fd()));
    keep.extend(entry.stdio.into_iter().flatten().map(AsRawFd::as_raw_fd));
    descriptors::close_all_except(&keep).map_err(Fault::io("cannot close stray descriptors"))
}

fn set_streams(entry: &Entry<'_>, owner: (Uid, Gid)) -> Result<()> {
    let failed = "cannot set the standard streams";
    match entry.stdio {
        Some(stdio) => {
            runtime::give_pipes_to(owner, stdio)?;
            rustix::stdio::dup2_stdin(&stdio[0]).map_err(Fault::io(failed))?;
            rustix::stdio::dup2_stdout(&stdio[1]).map_err(Fault::io(failed))?;
            rustix::stdio::dup2_stderr(&stdio[2]).map_err(Fault::io(failed))
        }
        None => {
            let terminal = make_terminal(entry, owner)?;
            rustix::process::ioctl_tiocsctty(&terminal).map_err(Fault::io("cannot take the terminal"))?;
            rustix::stdio::dup2_stdin(&terminal).map_err(Fault::io(failed))?;
            rustix::stdio::dup2_stdout(&terminal).map_err(Fault::io(failed))?;
            rustix::stdio::dup2_stderr(&terminal).map_err(Fault::io(failed))
        }
    }
}

/// A terminal of the container's own devpts; the master goes to the supervisor. The file is checked to be what it
/// should be: the container can put anything there.
fn make_terminal(entry: &Entry<'_>, (uid, _): (Uid, Gid)) -> Result<OwnedFd> {
    let failed = "cannot make a terminal in the container";
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::open(PTMX, flags, Mode::empty()).map_err(Fault::io(failed))?;
    if rustix::fs::fstatfs(&master).map_err(Fault::io(failed))?.f_type as i64 != DEVPTS_MAGIC {
        return Err(Fault::state(format!("{PTMX} of the container is not a terminal multiplexer")));
    }
    rustix::pty::unlockpt(&master).map_err(Fault::io(failed))?;
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(Fault::io(failed))?;
    rustix::fs::fchown(&terminal, Some(uid), None).map_err(Fault::io(failed))?;
    requests::set_size(&master, entry.request.rows, entry.request.columns).map_err(Fault::io(failed))?;
    Report::Terminal.send(entry.report, Some(&master))?;
    Ok(terminal)
}

/// `f_type` of a devpts.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// A working directory outside the root has a path that does not begin with a slash.
fn verify_inside() -> Result<()> {
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        _ => Err(Fault::image("the working directory is outside the container's root")),
    }
}

fn command(request: &wire::Exec, process: &Process) -> Result<(CString, Vec<CString>, Vec<CString>)> {
    let program = find_program(&request.command, path_of(&process.env))?;
    let mut environment = process.env.clone();
    if request.tty && !environment.iter().any(|variable| variable.starts_with("TERM=")) {
        environment.push(TERM.to_owned());
    }
    Ok((program, runtime::c_strings(&request.command)?, runtime::c_strings(&environment)?))
}

/// The supervisor's end of the report closes with it. A descriptor of the supervisor itself would be one more thing to
/// take from this process.
fn die_with_supervisor(entry: &Entry<'_>) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(Fault::io("cannot bind the process's life to its supervisor's"))?;
    if sandbox::is_closed(entry.report) {
        fork::exit_now(FAILED);
    }
    Ok(())
}

/// An AppArmor profile for the next execve, also that of a child: the file is opened in the node's procfs, for the
/// container's may be a fake.
fn apply_profile(name: &str) -> Result<()> {
    let open = |path: &str| File::options().write(true).open(path);
    let file = open("/proc/thread-self/attr/apparmor/exec").or_else(|_| open("/proc/thread-self/attr/exec"));
    file.and_then(|mut file| file.write_all(format!("exec {name}").as_bytes()))
        .map_err(Fault::io(format!("cannot apply the AppArmor profile {name:?}")))
}
