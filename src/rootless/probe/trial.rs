//! A node made for a moment, in a child, and what containers need tried in it: the same calls that pods will make.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use serde::{Deserialize, Serialize};

use super::places::nearest_existing;
use super::{NetworkTrial, NodeKind};
use crate::config::FUSE_OVERLAYFS;
use crate::rootless::made::write_maps;
use crate::rootless::subordinate::User;
use crate::sys::namespace::Namespace;
use crate::sys::overlay::Overlay;
use crate::sys::{fuse, sealed, trial};

/// For everything together.
const PATIENCE: Duration = Duration::from_secs(30);

/// One thing that was tried.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    /// What.
    pub name: String,
    /// What it means that it works.
    pub meaning: String,
    /// What it means that it does not.
    pub lack: String,
    /// How it is usually mended.
    pub mend: String,
    /// Whether no pod runs without it.
    pub needed: bool,
    /// What the kernel said; none when it works.
    pub error: Option<String>,
}

/// Name, meaning, lack, mend, needed.
type Words = (&'static str, &'static str, &'static str, &'static str, bool);

const USER: Words = (
    "user namespace",
    "can be made",
    "no user namespace, so no node and no pod",
    "ask the administrator to allow unprivileged user namespaces",
    true,
);
const MAPPING: Words = (
    "id mapping",
    "newuidmap and newgidmap map the subordinate ids",
    "the subordinate ids cannot be mapped",
    "see the lines above",
    true,
);
const NODE: Words = (
    "node namespaces",
    "mount, cgroup, network, UTS and IPC namespaces can be made",
    "the node's namespaces cannot be made",
    "in a container: give it CAP_SYS_ADMIN and a seccomp profile that allows unshare and mount",
    true,
);
const OVERLAY: Words = (
    "overlay",
    "layers are stacked by the kernel",
    "layers are stacked by fuse-overlayfs if it works, else every container gets a copy of its image, which takes its time and place",
    "sudo modprobe overlay; give --root a directory on ext4, xfs, btrfs or tmpfs (not on overlay, NFS or FUSE)",
    false,
);
const FUSE: Words = (
    "fuse-overlayfs",
    "it stacks layers, since the kernel does not",
    "every container gets a copy of its image, which takes its time and its place on the disk",
    "apt-get install fuse-overlayfs, and let this user open /dev/fuse; or mend the overlay",
    false,
);
const PLACE: Words = (
    "a place for images",
    "files can be made there",
    "no file can be made where images are to be kept",
    "give --root a directory that is yours, on a disk that is not full",
    true,
);
const WHITEOUT: Words = (
    "whiteouts",
    "deleted files of layers are kept as devices 0:0",
    "images that delete files of lower layers are copied for each container",
    "boot Linux 5.8 or newer, or give --root a directory on a local disk",
    false,
);
const NETWORK: Words = (
    "pod network",
    "pods can have a network of their own: a bridge and its rules (nftables), or the configured CNI plugins",
    "pods have no network of their own; those on the node's run",
    "mend what the line above names; a module that is missing: sudo modprobe -a bridge veth nf_tables",
    false,
);
const PROC: Words = (
    "/proc for containers",
    "a container gets a /proc of its own",
    "the /proc around us is masked, so the kernel refuses one to containers",
    "in a container: start the outer one with an unmasked /proc (docker: --security-opt systempaths=unconfined)",
    true,
);
const SEALED: Words = (
    "sealed binary",
    "containers cannot reach cricket's binary to write it",
    "cricket's own binary cannot be sealed",
    "mount /proc, and put the binary on a local disk",
    true,
);

impl Step {
    fn new(words: Words, result: io::Result<()>) -> Self {
        let (name, meaning, lack, mend, needed) = words;
        Self {
            name: name.into(),
            meaning: meaning.into(),
            lack: lack.into(),
            mend: mend.into(),
            needed,
            error: result.err().map(|error| error.to_string()),
        }
    }

    fn failed(&self) -> bool {
        self.error.is_some()
    }
}

/// Tries everything; stops at the first thing without which the next makes no sense.
pub fn run(root: &Path, kind: NodeKind, network: NetworkTrial<'_>) -> io::Result<Vec<Step>> {
    let place = nearest_existing(root).to_owned();
    let user = User::current();
    let work = |socket: &mut UnixStream| {
        serde_json::to_string(&steps(&place, kind, network, socket)).unwrap_or_else(|error| error.to_string())
    };
    let answer = trial::in_child(PATIENCE, work, |child, socket| map_when_asked(child, socket, kind, &user))?;
    serde_json::from_str(&answer).map_err(|error| io::Error::other(format!("the trial ended early: {error}")))
}

/// The parent's part: maps ids once the child has its user namespace. The child hears what came of it in one line.
fn map_when_asked(child: i32, socket: &mut UnixStream, kind: NodeKind, user: &User) -> io::Result<()> {
    if kind != NodeKind::Made {
        return Ok(());
    }
    let mut asked = [0u8; 1];
    io::Read::read_exact(socket, &mut asked)?;
    if asked == *b"m" {
        let said = write_maps(&child.to_string(), user).err().map(|error| error.to_string().replace('\n', " "));
        socket.write_all(format!("{}\n", said.unwrap_or_default()).as_bytes())?;
    }
    Ok(())
}

fn steps(place: &Path, kind: NodeKind, network: NetworkTrial<'_>, socket: &mut UnixStream) -> Vec<Step> {
    let mut steps = Vec::new();
    if kind == NodeKind::Made {
        steps.push(Step::new(USER, Namespace::User.make()));
        let made = !steps[0].failed();
        let asked = socket.write_all(if made { b"m" } else { b"-" });
        if !made {
            return steps;
        }
        steps.push(Step::new(MAPPING, asked.and_then(|()| hear_of_mapping(socket))));
        if steps[1].failed() {
            return steps;
        }
    }
    // While this process is in the network namespace that pods' would be made in.
    let here = if kind == NodeKind::Made { Ok(()) } else { (network.here)() };
    let mut others = Namespace::ALL.into_iter().filter(|kind| *kind != Namespace::User);
    let made = others.try_for_each(|kind| kind.make().map_err(|error| named(kind.name(), error)));
    steps.push(Step::new(NODE, made));
    if steps.last().is_some_and(Step::failed) {
        return steps;
    }
    let network = here.and_then(|()| (network.made)());
    steps.push(Step::new(NETWORK, network.map_err(io::Error::other)));
    steps.extend(file_systems(place, kind));
    steps.push(Step::new(SEALED, sealed::seal().map(drop)));
    steps.push(Step::new(PROC, own_proc()));
    steps
}

fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn hear_of_mapping(socket: &mut UnixStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    match line.trim_end() {
        "" => Ok(()),
        said => Err(io::Error::other(said.to_owned())),
    }
}

fn file_systems(place: &Path, kind: NodeKind) -> Vec<Step> {
    let directory = place.join(format!(".cricket-check-{}", std::process::id()));
    let names = ["", "lower", "upper", "work", "fuse-upper", "fuse-work"];
    let made = names.iter().try_for_each(|name| fs::create_dir(directory.join(name)));
    if let Err(error) = made {
        return vec![Step::new(PLACE, Err(named(&directory.display().to_string(), error)))];
    }
    let overlay = overlay(&directory, kind);
    let fused = overlay.is_err().then(|| fuse_overlay(&directory));
    let whiteout = mknodat(CWD, directory.join("upper/gone"), FileType::CharacterDevice, Mode::empty(), 0);
    // What is left of it would be a directory with a dot, four entries and no harm; the next lines tell of errors.
    let _ = fs::remove_dir_all(&directory);
    let mut steps = vec![Step::new(OVERLAY, overlay), Step::new(WHITEOUT, whiteout.map_err(Into::into))];
    steps.splice(1..1, fused.map(|result| Step::new(FUSE, result)));
    steps
}

/// A detached overlay, as a container's, in which a file of the lower layer is written.
fn overlay(directory: &Path, kind: NodeKind) -> io::Result<()> {
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| directory.join(name));
    fs::write(lower.join("file"), "below")?;
    write_through(&mount_overlay(&lower, &upper, &work, kind)?, &upper)
}

/// The same by the program.
fn fuse_overlay(directory: &Path) -> io::Result<()> {
    let [lower, upper, work] = ["lower", "fuse-upper", "fuse-work"].map(|name| directory.join(name));
    let stack = Overlay { lower: &[lower], upper: Some((&upper, &work)), user_attributes: true, owners: None };
    write_through(&fuse::mount(Path::new(FUSE_OVERLAYFS), &stack)?, &upper)
}

fn write_through(mounted: &OwnedFd, upper: &Path) -> io::Result<()> {
    let file = openat(mounted, "file", OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, b" and above")?;
    // A program may keep what is written until then.
    drop(file);
    match fs::read_to_string(upper.join("file"))?.as_str() {
        "below and above" => Ok(()),
        other => Err(io::Error::other(format!("a copied-up file holds {other:?}"))),
    }
}

fn mount_overlay(lower: &Path, upper: &Path, work: &Path, kind: NodeKind) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("lowerdir", lower), ("upperdir", upper), ("workdir", work)] {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
    }
    if kind != NodeKind::Root {
        rustix::mount::fsconfig_set_flag(context.as_fd(), "userxattr")?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// A new PID namespace and its /proc, mounted by its first process.
fn own_proc() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID)?;
    let mount = || -> io::Result<()> {
        let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        Ok(())
    };
    let work = |_: &mut UnixStream| mount().err().map(|error| error.to_string()).unwrap_or_default();
    match trial::in_child(PATIENCE, work, |_, _| Ok(()))?.as_str() {
        "" => Ok(()),
        said => Err(io::Error::other(said.to_owned())),
    }
}
