//! What a forked child does to become a process of a container: libcontainer's own way in forgets the seccomp filter, the
//! user namespace, limits and AppArmor.
//!
//! The order matters. While it can still see the node: settings are read, what will be written later is opened, the score
//! is set. Then, not dumpable, it joins; from here on every path is the container's. Ids and capabilities go before the last filter,
//! and nothing happens between that and execve but a look at the parent.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType};

use super::fault::{Fault, Result};
use super::process_settings::{Capabilities, Process, Settings, find_program, path_of};
use super::{requests, runtime, sandbox, seccomp, signals};
use crate::executor::protocol;
use crate::proto::supervisor as wire;
use crate::proto::supervisor::from_supervisor::Message;
use crate::proto::supervisor::reply;
use crate::sys::{descriptors, fork};

/// Exit code of a child that did not get as far as its program. Nobody reports it: the answer has said why.
const FAILED: i32 = 126;
/// Where the terminals of a container are made.
const PTMX: &str = "/dev/pts/ptmx";
/// What a program on a terminal finds where its image says nothing.
const TERM: &str = "TERM=xterm";
/// For a process that can no longer be started, there is no such user in the namespace: -1.
const NO_ID: u32 = u32::MAX;

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
    /// The container's filter, compiled by an earlier exec.
    pub filter: Option<&'a OwnedFd>,
    /// Of the container.
    pub oom_score_adj: i32,
    /// To see whether the supervisor lives.
    pub supervisor: &'a OwnedFd,
}

/// What a child tells its supervisor before it is somebody else's program. On the wire each is a reply: an exec reply with
/// the terminal's master, an empty one with a compiled filter, or an error.
#[derive(Debug)]
pub enum Report {
    /// The descriptor beside it is the terminal's master.
    Terminal,
    /// The descriptor beside it is the compiled filter.
    Filter,
    /// It will not run.
    Failed(Fault),
}

impl Report {
    /// From the wire.
    pub fn read(message: &wire::FromSupervisor) -> Option<Self> {
        let Some(Message::Reply(wire::Reply { result: Some(result), .. })) = &message.message else { return None };
        match result {
            reply::Result::Exec(_) => Some(Self::Terminal),
            reply::Result::Empty(_) => Some(Self::Filter),
            reply::Result::Error(error) => Some(Self::Failed(error.clone().into())),
            _ => None,
        }
    }

    fn send(self, to: &OwnedFd, descriptor: Option<&OwnedFd>) -> Result<()> {
        let result = match self {
            Self::Terminal => reply::Result::Exec(wire::ExecReply { pid: 0 }),
            Self::Filter => reply::Result::Empty(wire::Empty {}),
            Self::Failed(fault) => reply::Result::Error(fault.into()),
        };
        let reply = Message::Reply(wire::Reply { id: 1, result: Some(result) });
        let descriptors: Vec<_> = descriptor.iter().map(|fd| fd.as_fd()).collect();
        protocol::send(to, &wire::FromSupervisor { message: Some(reply) }, &descriptors)
            .map_err(Fault::because("cannot report to the supervisor"))
    }
}

/// The child's life until its program runs. It returns only when that fails.
pub fn enter(entry: &Entry<'_>) -> i32 {
    if let Err(fault) = join(entry) {
        let _ = Report::Failed(fault).send(entry.report, None);
    }
    FAILED
}

fn join(entry: &Entry<'_>) -> Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(Fault::io("cannot become non-dumpable"))?;
    keep_only(entry)?;
    let settings = Settings::read(entry.bundle)?;
    let process = settings.process;
    let filter = settings.linux.seccomp.is_some().then(|| filter(entry)).transpose()?;
    let profile = process.apparmor_profile.as_deref().map(Profile::open).transpose()?;
    sandbox::set_oom_score(entry.oom_score_adj).map_err(Fault::io("cannot set the process's oom score"))?;
    let last_capability = last_capability();
    rustix::process::setsid().map_err(Fault::io("cannot start a session"))?;

    let namespaces = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP;
    rustix::thread::move_into_thread_name_spaces(entry.target.as_fd(), namespaces)
        .map_err(Fault::io("cannot join the container's namespaces"))?;
    let owner = (Uid::from_raw(process.user.uid), Gid::from_raw(process.user.gid));
    set_streams(entry, owner)?;
    set_limits(&process)?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(Fault::io("cannot set no_new_privs"))?;
    }
    let inside = rustix::process::chdir(process.cwd.as_str());
    profile.map_or(Ok(()), Profile::apply)?;
    let early = filter.as_ref().filter(|_| !process.no_new_privileges);
    // Without no_new_privs a filter needs a capability that is about to go.
    early.map_or(Ok(()), seccomp::Filter::install)?;
    set_ids(&process)?;
    set_capabilities(process.capabilities.as_ref().unwrap_or(&Capabilities::default()), last_capability)?;
    // Some directories are only the user's, some only root's.
    inside.or_else(|_| rustix::process::chdir(process.cwd.as_str()))
        .map_err(Fault::io(format!("cannot change to the working directory {:?}", process.cwd)))?;
    verify_inside()?;
    let (program, arguments, environment) = command(entry.request, &process)?;
    signals::reset()?;
    die_with_supervisor(entry)?;
    descriptors::close_all_on_exec().map_err(Fault::io("cannot close descriptors"))?;
    let late = filter.as_ref().filter(|_| process.no_new_privileges);
    late.map_or(Ok(()), seccomp::Filter::install)?;
    let Err(errno) = nix::unistd::execve(&program, &arguments, &environment);
    Err(Fault::image(format!("cannot execute {program:?} in the container: {}", std::io::Error::from(errno))))
}

/// Nothing of the supervisor's comes along: the logs, pipes and sockets of the pod end here.
fn keep_only(entry: &Entry<'_>) -> Result<()> {
    let mut keep: Vec<RawFd> = vec![entry.target.as_raw_fd(), entry.report.as_raw_fd(), entry.supervisor.as_raw_fd()];
    keep.extend(entry.stdio.into_iter().flatten().map(AsRawFd::as_raw_fd));
    keep.extend(entry.filter.map(AsRawFd::as_raw_fd));
    descriptors::close_all_except(&keep).map_err(Fault::io("cannot close stray descriptors"))
}

fn filter(entry: &Entry<'_>) -> Result<seccomp::Filter> {
    if let Some(compiled) = entry.filter {
        return seccomp::Filter::load(compiled);
    }
    let (filter, compiled) = seccomp::Filter::compile(entry.bundle)?;
    Report::Filter.send(entry.report, Some(&compiled))?;
    Ok(filter)
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

/// A terminal of the container's own devpts; the master goes to the supervisor. The file is checked to be what it should
/// be: the container can put anything there.
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

fn set_limits(process: &Process) -> Result<()> {
    for limit in &process.rlimits {
        let resource = resource(&limit.name)?;
        // Who is not privileged cannot raise a hard limit; the container's own first process could not either.
        let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let hard = limit.hard.min(most);
        let bound = |value: u64| (value != u64::MAX).then_some(value);
        let wanted = Rlimit { current: bound(limit.soft.min(hard)), maximum: bound(hard) };
        rustix::process::setrlimit(resource, wanted).map_err(Fault::io(format!("cannot set {}", limit.name)))?;
    }
    Ok(())
}

fn resource(name: &str) -> Result<Resource> {
    Ok(match name {
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_STACK" => Resource::Stack,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        other => return Err(Fault::invalid(format!("{other:?} is not a resource limit"))),
    })
}

fn set_ids(process: &Process) -> Result<()> {
    let user = &process.user;
    if user.uid == NO_ID || user.gid == NO_ID {
        return Err(Fault::invalid("the container's user is no id"));
    }
    let groups: Vec<Gid> = user.additional_gids.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_keep_capabilities(true).map_err(Fault::io("cannot keep capabilities"))?;
    rustix::thread::set_thread_groups(&groups).map_err(Fault::io("cannot set the supplementary groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(Fault::io(format!("cannot become group {}", user.gid)))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(Fault::io(format!("cannot become user {}", user.uid)))?;
    rustix::process::umask(Mode::from_raw_mode(user.umask.unwrap_or(0o022)));
    Ok(())
}

fn set_capabilities(wanted: &Capabilities, last: u32) -> Result<()> {
    let bounding = set_of(&wanted.bounding)?;
    let permitted = set_of(&wanted.permitted)?;
    let effective = set_of(&wanted.effective)? & permitted;
    let ambient = set_of(&wanted.ambient)? & permitted;
    for number in 0..=last {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !bounding.contains(one) {
            rustix::thread::remove_capability_from_bounding_set(one)
                .map_err(Fault::io("cannot narrow the bounding set"))?;
        }
    }
    // What is inherited is only what is ambient, else nothing (SECURITY.md row 3).
    let sets = CapabilitySets { effective, permitted, inheritable: ambient };
    rustix::thread::set_capabilities(None, sets).map_err(Fault::io("cannot set capabilities"))?;
    rustix::thread::clear_ambient_capability_set().map_err(Fault::io("cannot clear ambient capabilities"))?;
    for one in ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(one, true)
            .map_err(Fault::io("cannot set an ambient capability"))?;
    }
    rustix::thread::set_keep_capabilities(false).map_err(Fault::io("cannot reset capabilities"))
}

fn set_of(names: &[String]) -> Result<CapabilitySet> {
    let mut set = CapabilitySet::empty();
    for name in names {
        let known: caps::Capability = name.parse().map_err(|_| Fault::invalid(format!("{name:?} is no capability")))?;
        set |= CapabilitySet::from_bits_retain(known.bitmask());
    }
    Ok(set)
}

/// Number of the highest capability that the kernel knows.
fn last_capability() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    text.trim().parse().unwrap_or(40).min(63)
}

/// A working directory outside the root has a path that does not begin with a slash (SECURITY.md row 2).
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

fn die_with_supervisor(entry: &Entry<'_>) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(Fault::io("cannot bind the process's life to its supervisor's"))?;
    if sandbox::is_dead(entry.supervisor) {
        fork::exit_now(FAILED);
    }
    Ok(())
}

/// An AppArmor profile: the file is opened in the node's procfs, for the container's may be a fake (SECURITY.md row 11).
struct Profile {
    name: String,
    file: File,
}

impl Profile {
    fn open(name: &str) -> Result<Self> {
        let open = |path: &str| File::options().write(true).open(path);
        let file = open("/proc/thread-self/attr/apparmor/exec").or_else(|_| open("/proc/thread-self/attr/exec"));
        Ok(Self { name: name.to_owned(), file: file.map_err(Fault::io("cannot apply an AppArmor profile here"))? })
    }

    fn apply(mut self) -> Result<()> {
        self.file
            .write_all(format!("exec {}", self.name).as_bytes())
            .map_err(Fault::io(format!("cannot apply the AppArmor profile {:?}", self.name)))
    }
}
