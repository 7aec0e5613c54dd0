//! libcontainer, and nothing else in the program names it.
//!
//! It is called in a creator only: a forked process of one thread that does nothing afterwards. What it does to its
//! caller (its directory, its dumpability, its children) ends with that process. The first process of the container is
//! made as the creator's *sibling*, thus the supervisor's own child from its first moment: its parent-death signal can
//! be set before it is started, and the creator's end does not fire it.

use std::collections::HashMap;
use std::error::Error;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::notify_socket::{NOTIFY_FILE, NotifySocket};
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rustix::fs::{FileType, Gid, Uid};
use rustix::process::Signal;

use super::confinement::Confinement;
use super::dev_mount::DevMounts;
use super::fault::{Fault, Result};
use super::process_settings::{find_program, path_of};
use super::runtime_notes::Notes;
use super::sources::Moved;
use super::user_namespace::UserNamespace;
use super::{adaptation, console, preflight, reach, sandbox, signals};
use crate::executor::protocol;
use crate::proto::supervisor as wire;
use crate::sys::{descriptors, fork};

/// The OCI runtime specification's types.
pub use libcontainer::oci_spec::runtime as oci;

/// Name of the specification in a bundle.
pub const SPEC_FILE: &str = "config.json";
/// Where the runtime notes the first process, for a watchdog.
const PID_FILE: &str = "init.pid";
/// Exit codes of a process whose program could not be executed, as shells have them.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// Part of the runtime's error when the first process ended without a word.
const SILENT_END: &str = "BrokenChannel";
/// How it says that a fork failed, wherever it forks.
const NOT_CLONED: &str = "failed to clone process";

/// What is to be created.
pub struct Order<'a> {
    /// Of the container.
    pub id: &'a str,
    /// Holds config.json and rootfs.
    pub bundle: &'a Path,
    /// For the runtime's own state.
    pub state: &'a Path,
    /// Whether there is a cgroup for it.
    pub limited: bool,
    /// Controllers there; `None` without cgroups.
    pub controllers: Option<Vec<String>>,
    /// PID namespace to join.
    pub pid_namespace: Option<PathBuf>,
    /// Whether it has a PID namespace other than the node's.
    pub own_pid_namespace: bool,
    /// Its standard streams; none: a terminal is made.
    pub stdio: Option<&'a [OwnedFd; 3]>,
    /// For a word about a failed execve.
    pub start_report: &'a OwnedFd,
    /// To see whether the supervisor lives.
    pub supervisor: &'a OwnedFd,
    /// Where compiled seccomp filters are kept; without a name: nowhere.
    pub filters: &'a Path,
    /// Of the pod, where it has one of its own.
    pub user_namespace: Option<&'a UserNamespace>,
    /// Mounts of the specification, by number, whose sources are elsewhere.
    pub moved: &'a [Moved],
}

/// What was created.
pub struct Created {
    /// The first process, waiting to be told to go.
    pub pid: i32,
    /// Master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Limits that had to be left out.
    pub not_enforced: Vec<String>,
    /// What may be mounted below its /proc; `None`: its /proc is the node's, with all that is there.
    pub below_proc: Option<Vec<PathBuf>>,
    /// To be attached when everything else is done.
    pub in_dev: DevMounts,
}

/// Creates a container.
pub fn create(order: Order<'_>) -> Result<Created> {
    let path = order.bundle.join(SPEC_FILE);
    let mut spec = oci::Spec::load(&path).map_err(Fault::because(format!("cannot read {}", path.display())))?;
    let not_enforced = adaptation::adapt(&mut spec, &order)?;
    let confinement = Confinement::take_from(&mut spec, order.filters, order.bundle)?;
    let owner = owner(&spec, order.user_namespace)?;
    order.stdio.map_or(Ok(()), |stdio| give_pipes_to(owner, stdio))?;
    let console = match order.stdio {
        Some(_) => None,
        None => Some(console::listen(order.bundle)?),
    };
    preflight::check_sources(&order.bundle.join("rootfs"), spec.mounts().iter().flatten(), order.moved)?;
    let in_dev = DevMounts::take_from(&mut spec);
    write_spec(&mut spec, &order)?;
    order.user_namespace.map_or(Ok(()), |_| reach::make_reachable(order.bundle))?;
    let pid = build(&order, console.is_some(), confinement).map_err(|fault| with_directory(fault, &spec))?;
    let terminal = console.map(|listener| console::receive(&listener, owner, order.bundle)).transpose()?;
    Ok(Created { pid, terminal, not_enforced, below_proc: below_proc(&spec), in_dev })
}

fn below_proc(spec: &oci::Spec) -> Option<Vec<PathBuf>> {
    let mounts = spec.mounts().iter().flatten();
    let mut places: Vec<PathBuf> = mounts.clone().map(|mount| mount.destination().clone()).collect();
    if mounts.clone().any(|mount| mount.destination() == Path::new("/proc") && mount.typ().as_deref() == Some("bind")) {
        return None;
    }
    if let Some(linux) = spec.linux() {
        let guarded = [linux.masked_paths(), linux.readonly_paths()];
        places.extend(guarded.into_iter().flatten().flatten().map(PathBuf::from));
    }
    Some(places)
}

/// The runtime reads another specification than execs do: adapted, and without what this program does itself.
fn write_spec(spec: &mut oci::Spec, order: &Order<'_>) -> Result<()> {
    if let Some(root) = spec.root_mut() {
        let path = order.bundle.join(root.path());
        root.set_path(path);
    }
    let path = order.state.join(SPEC_FILE);
    let failed = || format!("cannot write {}", path.display());
    let bytes = serde_json::to_vec(spec).map_err(Fault::because(failed()))?;
    fs::create_dir_all(order.state).map_err(Fault::io("cannot make the runtime's directory"))?;
    fs::write(&path, bytes).map_err(Fault::io(failed()))
}

fn build(order: &Order<'_>, console: bool, confinement: Confinement) -> Result<i32> {
    let notes = Notes::new()?;
    let confined = confinement.is_early();
    let failed = |error: &dyn Error| failure(error, &notes, confined);
    let (report, supervisor) = (order.start_report.as_raw_fd(), order.supervisor.as_raw_fd());
    let program = Program { report, supervisor, confinement };
    let mut builder = ContainerBuilder::new(order.id.to_owned(), SyscallType::default())
        .with_root_path(order.state)
        .and_then(|builder| builder.with_pid_file(Some(order.bundle.join(PID_FILE))))
        .map_err(|error| failed(&error))?
        .with_executor(program);
    if let Some(stdio) = order.stdio {
        let copy = |index: usize| stdio[index].try_clone().map_err(Fault::io("cannot duplicate a stream"));
        builder = builder.with_stdin(copy(0)?).with_stdout(copy(1)?).with_stderr(copy(2)?);
    }
    if console {
        builder = builder.with_console_socket(Some(order.bundle.join(console::CONSOLE_SOCKET)));
    }
    let container = notes
        .taken(|| builder.as_init(order.state).with_systemd(false).as_sibling(true).build())
        .map_err(|error| failed(&error))?;
    container.pid().map(nix::unistd::Pid::as_raw).ok_or_else(|| Fault::state("the container has no process"))
}

/// The first process, if the runtime got as far as making it.
pub fn first_process(bundle: &Path) -> Option<i32> {
    fs::read_to_string(bundle.join(PID_FILE)).ok()?.trim().parse().ok()
}

/// Tells a created container to go.
pub fn start(state: &Path, id: &str) -> Result<()> {
    NotifySocket::new(state.join(id).join(NOTIFY_FILE))
        .notify_container_start()
        .map_err(|error| Fault::new(wire::ErrorKind::Internal, chain(&error)))
}

fn owner(spec: &oci::Spec, user_namespace: Option<&UserNamespace>) -> Result<(Uid, Gid)> {
    let user = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    let (uid, gid) = user.unwrap_or_default();
    let here = (Uid::from_raw(uid), Gid::from_raw(gid));
    user_namespace.map_or(Ok(here), |namespace| namespace.outside(uid, gid))
}

/// A pipe belongs to who made it; a container of another user could not open /dev/stdout.
pub fn give_pipes_to((uid, gid): (Uid, Gid), streams: &[OwnedFd; 3]) -> Result<()> {
    for stream in streams {
        let stat = rustix::fs::fstat(stream).map_err(Fault::io("cannot look at a stream"))?;
        if FileType::from_raw_mode(stat.st_mode).is_fifo() && stat.st_uid != uid.as_raw() {
            rustix::fs::fchown(stream, Some(uid), Some(gid))
                .map_err(Fault::io("cannot give a stream to the container's user"))?;
        }
    }
    Ok(())
}

/// What the runtime noted first says which file or call it was.
fn failure(error: &dyn Error, notes: &Notes, confined: bool) -> Fault {
    let chain = chain(error);
    if confined && chain.contains(SILENT_END) {
        let text =
            "the container's first process ended before its program: its seccomp profile forbids what that takes";
        return Fault::state(text);
    }
    match notes.first() {
        // The process that tried is gone, and with it the error's number.
        Some(note) if note.contains(NOT_CLONED) => Fault::no_process("the container gets no process"),
        Some(note) => Fault::state(format!("the container cannot be made: {note}")),
        None => Fault::new(wire::ErrorKind::Internal, chain),
    }
}

/// The one thing of the request's that the runtime's notes do not name.
fn with_directory(mut fault: Fault, spec: &oci::Spec) -> Fault {
    let directory = spec.process().as_ref().map(|process| process.cwd().display().to_string()).unwrap_or_default();
    if fault.message.contains("failed to chdir") {
        fault.message = format!("the container cannot use its working directory {directory:?}: {}", fault.message);
    }
    fault
}

/// An error with everything below it: libcontainer's own texts rarely say which file or call it was.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        below = cause.source();
    }
    text
}

/// Turns the container's first process into its program. Runs in that process: inside the container's root, with its
/// user; it completes the rest, see [`Confinement`].
#[derive(Clone)]
struct Program {
    report: RawFd,
    supervisor: RawFd,
    confinement: Confinement,
}

impl Program {
    fn tell(&self, fault: &Fault) {
        // SAFETY-free: the numbers stay open in this process until its execve.
        if let Ok(report) = descriptors::borrowed(self.report) {
            let _ = protocol::send(report, &wire::Error::from(fault.clone()), &[]);
        }
    }

    /// From here on the death of the supervisor is this process's own; nothing changes its credentials any more.
    fn die_with_supervisor(&self) -> Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(Fault::io("cannot bind the container's life to its supervisor's"))?;
        let supervisor = descriptors::borrowed(self.supervisor).map_err(Fault::io("cannot look at the supervisor"))?;
        if sandbox::is_dead(supervisor) {
            fork::exit_now(NOT_EXECUTABLE);
        }
        Ok(())
    }
}

impl Executor for Program {
    fn validate(&self, spec: &oci::Spec) -> std::result::Result<(), ExecutorValidationError> {
        let confined = self.confinement.begin().and_then(|()| self.die_with_supervisor());
        let checked = confined.and_then(|()| program_of(spec).map(|_| ()));
        checked.map_err(|fault| {
            self.tell(&fault);
            ExecutorValidationError::ArgValidationError(fault.message)
        })
    }

    /// The environment is given to execve, not set here.
    fn setup_envs(&self, _: HashMap<String, String>) -> std::result::Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &oci::Spec) -> std::result::Result<(), ExecutorError> {
        let ready = program_of(spec).and_then(|ready| {
            let _ = signals::reset();
            self.confinement.complete().map(|()| ready)
        });
        let fault = match ready {
            Ok((program, arguments, environment)) => {
                let Err(errno) = nix::unistd::execve(&program, &arguments, &environment);
                let program = program.to_string_lossy();
                Fault::image(format!("cannot execute {program:?} of the image: {}", io::Error::from(errno)))
            }
            Err(fault) => fault,
        };
        self.tell(&fault);
        let code = if fault.message.contains("not found") { NOT_FOUND } else { NOT_EXECUTABLE };
        fork::exit_now(code)
    }
}

/// Program, arguments and environment for execve.
fn program_of(spec: &oci::Spec) -> Result<(CString, Vec<CString>, Vec<CString>)> {
    let process = spec.process().as_ref().ok_or_else(|| Fault::invalid("the container's spec has no process"))?;
    let none = Vec::new();
    let environment = process.env().as_ref().unwrap_or(&none);
    let arguments = process.args().as_ref().unwrap_or(&none);
    let program = find_program(arguments, path_of(environment))?;
    Ok((program, c_strings(arguments)?, c_strings(environment)?))
}

/// As execve wants them.
pub fn c_strings(texts: &[String]) -> Result<Vec<CString>> {
    texts
        .iter()
        .map(|text| CString::new(text.as_str()))
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| Fault::invalid("an argument or a variable holds a zero byte"))
}
