//! Detached mounts that the container binds (an image's, a copy that shares mounts with the node, a source that was
//! taken): attached below the bundle in the creator's own mount namespace, and so only for as long as the runtime needs
//! them. What ends with a namespace is not unmounted anywhere else, whatever it shares.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::mount::MoveMountFlags;

use super::fault::{Fault, Result};

/// Where they are attached, from the bundle: a name is a number.
const DIRECTORY: &str = "volumes";

/// Attaches one at its place, which is made a directory or a file, as the mount's root is. Answers the place.
pub fn attach(bundle: &Path, number: usize, volume: &OwnedFd) -> Result<PathBuf> {
    let place = bundle.join(DIRECTORY).join(number.to_string());
    let failed = || format!("cannot attach the volume {}", place.display());
    make_place(&place, volume).map_err(Fault::io(failed()))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(volume, "", rustix::fs::CWD, &place, flags).map_err(Fault::io(failed()))?;
    Ok(place)
}

fn make_place(place: &Path, volume: &OwnedFd) -> std::io::Result<()> {
    fs::create_dir_all(place.parent().unwrap_or(Path::new("/")))?;
    let made = match FileType::from_raw_mode(rustix::fs::fstat(volume)?.st_mode).is_dir() {
        true => fs::create_dir(place),
        false => fs::File::create_new(place).map(drop),
    };
    made.or_else(|error| if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
}
