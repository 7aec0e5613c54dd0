//! Layers stacked by fuse-overlayfs, where the kernel's overlayfs does not take the file system.
//!
//! The mount is attached nowhere, like the kernel's own: the program is given the open connection as a descriptor
//! instead of a mount point. It serves until the last holder of the mount has gone, and then ends by itself: a daemon
//! that is killed takes nothing with it, and of a pod that ends nothing stays. What dies before that is told in the
//! log; files of the mount then fail with ENOTCONN.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::overlay::Overlay;
use super::spawn::join_and_pass;

/// Where connections come from.
const DEVICE: &str = "/dev/fuse";
/// The number of the connection's descriptor in the program.
const CONNECTION: i32 = 3;
/// Mode of a directory, in octal.
const ROOT_MODE: &str = "40000";
/// The program's options are one argument, for which the kernel has 128 KiB.
const OPTIONS_LIMIT_BYTES: usize = 127 << 10;
/// For the program's first answer.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Stack of the thread that waits for the program's end.
const WATCH_STACK_BYTES: usize = 256 << 10;

/// Mounts what is stacked, by `program` (a name in PATH, or a path). Blocking.
pub fn mount(program: &Path, stack: &Overlay<'_>) -> io::Result<OwnedFd> {
    let options = options(stack)?;
    let connection = OwnedFd::from(File::options().read(true).write(true).open(DEVICE).map_err(at(DEVICE))?);
    let mount = connect(&connection, stack.upper.is_none())?;
    let mut command = Command::new(program);
    command.args(["-f", "-o", &options]).arg(format!("/dev/fd/{CONNECTION}")).current_dir("/");
    // Whoever interrupts a daemon on a terminal does not mean its containers.
    command.process_group(0).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    join_and_pass(&mut command, &[], &connection, CONNECTION)?;
    let child = command.spawn().map_err(at(&program.display().to_string()))?;
    // From here on it is the program's alone: what is asked of a dead one fails and does not wait.
    drop((command, connection));
    let (ready, is_ready) = sync_channel(1);
    let watch = std::thread::Builder::new().name("fuse-overlayfs".into()).stack_size(WATCH_STACK_BYTES);
    watch.spawn(move || watch_over(child, &is_ready))?;
    openat(&mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // A thread that has ended has said why.
    let _ = ready.send(());
    Ok(mount)
}

/// A mount that nobody serves yet.
fn connect(connection: &OwnedFd, read_only: bool) -> io::Result<OwnedFd> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let number = connection.as_raw_fd().to_string();
    for (key, value) in
        [("source", "fuse-overlayfs"), ("fd", &number), ("rootmode", ROOT_MODE), ("user_id", "0"), ("group_id", "0")]
    {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    // The kernel checks modes, and every user of the container is let in.
    for flag in ["default_permissions", "allow_other"] {
        fsconfig_set_flag(context.as_fd(), flag)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = if read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn options(stack: &Overlay<'_>) -> io::Result<String> {
    let lower: Vec<&str> = stack.lower.iter().map(|path| plain(path)).collect::<io::Result<_>>()?;
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let Some((upper, work)) = stack.upper {
        options += &format!(",upperdir={},workdir={}", plain(upper)?, plain(work)?);
    }
    match options.len() {
        ..OPTIONS_LIMIT_BYTES => Ok(options),
        _ => Err(io::Error::other("the paths of its layers are too long for fuse-overlayfs")),
    }
}

/// Paths that the program's options can hold.
fn plain(path: &Path) -> io::Result<&str> {
    let text = path.to_str().filter(|text| !text.contains([',', ':', '\\']));
    text.ok_or_else(|| io::Error::other(format!("{} is no path for fuse-overlayfs", path.display())))
}

fn watch_over(mut child: Child, is_ready: &Receiver<()>) {
    // Of one that ends early or hangs, what is asked fails.
    if is_ready.recv_timeout(START_LIMIT).is_err() {
        let _ = child.kill();
    }
    match child.wait() {
        Ok(status) if status.success() => {}
        Ok(status) => {
            tracing::error!("fuse-overlayfs {} ended early ({status}): a container lost its files", child.id())
        }
        Err(error) => tracing::warn!("fuse-overlayfs {} cannot be waited for: {error}", child.id()),
    }
}

fn at(what: &str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}
