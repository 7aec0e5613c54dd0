//! Volumes that the daemon made as detached mounts (an image's, or a copy that shares mounts with the node): attached in
//! this process's own mount namespace for as long as the runtime needs to bind them.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{MoveMountFlags, UnmountFlags};

use super::fault::{Fault, Result};
use crate::sys::propagation::{self, Propagation};

/// Where they are attached, from the bundle: a name is a number.
const DIRECTORY: &str = "volumes";

/// Where volume `number` is attached.
pub fn place(bundle: &Path, number: usize) -> PathBuf {
    bundle.join(DIRECTORY).join(number.to_string())
}

/// Attaches each at its place, which is made a directory or a file, as the mount's root is.
pub fn attach<'a>(bundle: &Path, volumes: impl Iterator<Item = &'a OwnedFd>) -> Result<()> {
    for (number, volume) in volumes.enumerate() {
        let place = place(bundle, number);
        let failed = || format!("cannot attach the volume {}", place.display());
        make_place(&place, volume).map_err(Fault::io(failed()))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(volume, "", rustix::fs::CWD, &place, flags).map_err(Fault::io(failed()))?;
    }
    Ok(())
}

fn make_place(place: &Path, volume: &OwnedFd) -> std::io::Result<()> {
    fs::create_dir_all(place.parent().unwrap_or(Path::new("/")))?;
    let made = match FileType::from_raw_mode(rustix::fs::fstat(volume)?.st_mode).is_dir() {
        true => fs::create_dir(place),
        false => fs::File::create_new(place).map(drop),
    };
    made.or_else(|error| if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
}

/// Takes them off again; the container has mounts of its own. Made private first, or what is mounted below a volume that
/// shares its mounts would be unmounted in the node as well. One that cannot be made private stays until the pod's end.
pub fn release(bundle: &Path) {
    let Ok(entries) = fs::read_dir(bundle.join(DIRECTORY)) else { return };
    for place in entries.flatten().map(|entry| entry.path()) {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let private = rustix::fs::open(&place, flags, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|mount| propagation::set(mount.as_fd(), Propagation::Private));
        if private.is_ok() {
            let _ = rustix::mount::unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}
