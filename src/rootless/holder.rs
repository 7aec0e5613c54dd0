//! `cricket node`: the process that holds the namespaces of a node that we made, while the daemon comes and goes. One
//! thread; it waits for SIGTERM and does nothing else. The conversation with its starter is told in `made`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, Signal};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use super::cgroups;
use super::record::NodeRecord;
use crate::sys::namespace::Namespace;
use crate::sys::{descriptors, loopback, trial};

/// Namespaces and the files by which they are opened.
pub type Places = BTreeMap<Namespace, PathBuf>;

/// Makes the node (or joins what survives of it) and holds it until SIGTERM. Standard input is the starter's socket.
/// The process that was started exits at once; this returns in the detached one, at the node's end.
/// `held` are namespaces of the old node that no process is in, but that somebody has open.
pub fn hold(state: &Path, cgroup: Option<&Path>, held: Places) -> io::Result<()> {
    descriptors::close_all_except(&[])?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Before anything else, so that a signal which comes early is not lost.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    trial::detach()?;
    // What `ps` and the kernel's messages call it; without a name it is only less plain.
    let _ = rustix::thread::set_name(c"cricket-node");
    signals.thread_block()?;
    let made = make(state, cgroup, held, &socket);
    if let Err(why) = made {
        // Whoever has gone already says why; one error is enough.
        let _ = tell(&socket, &format!("error {}", why.replace('\n', " ")));
        return Ok(());
    }
    tell(&socket, "ready")?;
    drop(socket);
    let_go_of_stdio()?;
    wait_for_the_end(&signals)?;
    NodeRecord::remove(state).map_err(io::Error::other)
}

fn tell(mut socket: &UnixStream, line: &str) -> io::Result<()> {
    socket.write_all(format!("{line}\n").as_bytes())
}

/// A node outlives terminals and pipes; it must not keep them open.
fn let_go_of_stdio() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    std::env::set_current_dir("/")
}

fn wait_for_the_end(signals: &SigSet) -> io::Result<()> {
    // A hang-up is a terminal's that we left.
    while signals.wait()? == Signal::SIGHUP {}
    Ok(())
}

fn make(state: &Path, cgroup: Option<&Path>, held: Places, socket: &UnixStream) -> Result<(), String> {
    let old = NodeRecord::read(state).map_err(|error| error.to_string())?;
    let mut survivors = match &old {
        Some(record) => record.survivors().map_err(|error| format!("cannot look for what survives: {error}"))?,
        None => BTreeMap::new(),
    };
    survivors.extend(held);
    let opened = open_all(&survivors)?;
    let kept_cgroup = opened.iter().any(|(kind, _)| *kind == Namespace::Cgroup);
    take_user(&opened, socket)?;
    let base = if kept_cgroup { old.and_then(|record| record.cgroup) } else { cgroup.map(PathBuf::from) };
    for kind in Namespace::ALL.into_iter().filter(|kind| *kind != Namespace::User) {
        let made = match opened.iter().find(|(found, _)| *found == kind) {
            Some((_, fd)) => kind.enter(fd),
            None => new(kind, base.as_deref()),
        };
        made.map_err(|error| format!("{} namespace: {error}", kind.name()))?;
    }
    if let Some(base) = &base {
        // In the leaf of the node, so that the base has no process of its own.
        if !kept_cgroup {
            enter_leaf(base)?;
        }
    }
    let record = NodeRecord::own(base).map_err(|error| format!("cannot read our namespaces: {error}"))?;
    record.write(state).map_err(|error| error.to_string())
}

type Opened = Vec<(Namespace, OwnedFd)>;

fn open_all(survivors: &Places) -> Result<Opened, String> {
    // Without the user namespace nothing else of the old node can be entered.
    if !survivors.contains_key(&Namespace::User) {
        return Ok(Vec::new());
    }
    let open = |(kind, path): (&Namespace, &PathBuf)| Ok((*kind, File::open(path)?.into()));
    survivors.iter().map(open).collect::<io::Result<_>>().map_err(|error| format!("cannot open a namespace: {error}"))
}

fn take_user(opened: &Opened, socket: &UnixStream) -> Result<(), String> {
    let failed = |error: io::Error| format!("user namespace: {error}");
    let own = Namespace::User.inode_of(std::process::id() as i32).map_err(failed)?;
    if let Some((kind, fd)) = opened.iter().find(|(kind, _)| *kind == Namespace::User) {
        // A process may not enter the user namespace that it is in: when the daemon, which has joined, started us.
        if crate::sys::namespace::inode(fd).map_err(failed)? != own {
            kind.enter(fd).map_err(failed)?;
        }
        return tell(socket, "found").map_err(failed);
    }
    Namespace::User.make().map_err(failed)?;
    tell(socket, &format!("map {}", std::process::id())).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).map_err(failed)?;
    match answer.trim_end() {
        "mapped" => Ok(()),
        _ => Err("the ids were not mapped".into()),
    }
}

fn new(kind: Namespace, base: Option<&Path>) -> io::Result<()> {
    // A cgroup namespace begins where its maker is.
    if let (Namespace::Cgroup, Some(base)) = (kind, base) {
        // A unit's cgroup whose node is gone may still divide its controllers, and then nobody may enter it.
        let moved = cgroups::move_into(base).or_else(|_| {
            cgroups::disable(base);
            cgroups::move_into(base)
        });
        moved.map_err(|error| io::Error::other(format!("cannot move into the cgroup {}: {error}", base.display())))?;
    }
    kind.make()?;
    match kind {
        Namespace::Network => loopback::up(),
        Namespace::Mount => prepare_mounts(base),
        _ => Ok(()),
    }
}

fn enter_leaf(base: &Path) -> Result<(), String> {
    // The node's own view: its cgroup namespace begins at the base.
    let leaf = Path::new(cgroups::MOUNT).join(cgroups::NODE_LEAF);
    cgroups::move_into(&leaf)
        .map_err(|error| format!("cannot move into {} of {}: {error}", leaf.display(), base.display()))
}

/// Mounts of the host go on to arrive, ours never leave, and a process of the node may use any propagation among us.
fn prepare_mounts(base: Option<&Path>) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // A sysfs of the node's own network. It hides the cgroups, which follow; a machine that shows only a part of its
    // sysfs refuses, and then the host's stays.
    let own_sysfs = mount("sysfs", "/sys", "sysfs", flags, None::<&std::ffi::CStr>).is_ok();
    match mount("cgroup2", cgroups::MOUNT, "cgroup2", flags, None::<&std::ffi::CStr>) {
        Err(error) if own_sysfs => {
            unmount("/sys", UnmountFlags::DETACH)?;
            base.map_or(Ok(()), |_| Err(error.into()))
        }
        Err(error) => base.map_or(Ok(()), |_| Err(error.into())),
        Ok(()) => Ok(()),
    }
}
