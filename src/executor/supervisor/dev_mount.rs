//! A mount over a container's /dev, mostly the node's own (drivers of storage and devices ask for it).
//!
//! The runtime makes its devices and links in whatever is mounted at /dev, and takes /dev/ptmx away there: in the node's
//! /dev that would be the node's. So it gets a /dev of its own to work in, and the one that was asked for covers that
//! when it is done.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::fault::{Fault, Result};
use super::runtime::oci;
use crate::sys::propagation::{self, Propagation};

/// Where.
const DEV: &str = "/dev";
/// Where the runtime looks for a terminal.
const TERMINALS: &str = "/dev/pts";

/// The mount, attached nowhere yet.
pub struct DevMount {
    mount: OwnedFd,
    /// Mounts that were asked for below it.
    below: Vec<PathBuf>,
}

impl DevMount {
    /// Takes it out of the specification, if there is one.
    pub fn take_from(spec: &mut oci::Spec) -> Result<Option<Self>> {
        let Some(mounts) = spec.mounts_mut() else { return Ok(None) };
        let is_wanted = |mount: &oci::Mount| {
            mount.destination() == Path::new(DEV) && mount.typ().as_deref() == Some("bind") && mount.source().is_some()
        };
        let Some(at) = mounts.iter().position(is_wanted) else { return Ok(None) };
        let mount = detached(&mounts[at])?;
        let below = mounts.iter().map(|mount| mount.destination().clone());
        let below = below.filter(|place| place.starts_with(DEV) && *place != Path::new(DEV)).collect::<Vec<_>>();
        let terminals = !below.iter().any(|place| place == Path::new(TERMINALS));
        mounts[at] = fresh(DEV, "tmpfs", &["nosuid", "mode=755", "size=64k"]);
        if terminals {
            mounts.insert(at + 1, fresh(TERMINALS, "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666"]));
        }
        Ok(Some(Self { mount, below }))
    }

    /// Attaches it, in the container's mounts, and what was mounted below /dev on top of it.
    pub fn attach(&self) -> Result<()> {
        let mut moved = Vec::new();
        for place in &self.below {
            moved.push((copy(place, true).map_err(failed(place))?, place));
        }
        put(&self.mount, Path::new(DEV)).map_err(failed(Path::new(DEV)))?;
        moved.iter().try_for_each(|(mount, place)| put(mount, place).map_err(failed(place)))
    }
}

fn failed<E: Into<std::io::Error>>(place: &Path) -> impl FnOnce(E) -> Fault {
    Fault::io(format!("cannot mount what was asked for at {}", place.display()))
}

fn fresh(destination: &str, kind: &str, options: &[&str]) -> oci::Mount {
    let mut mount = oci::Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(kind.into()))
        .set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    mount
}

fn detached(wanted: &oci::Mount) -> Result<OwnedFd> {
    let none = Vec::new();
    let options = wanted.options().as_ref().unwrap_or(&none);
    let has = |name: &str| options.iter().any(|option| option == name);
    let source = wanted.source().as_deref().unwrap_or(Path::new(DEV));
    let make = || -> std::io::Result<OwnedFd> {
        let mount = copy(source, has("rbind"))?;
        propagation::set(mount.as_fd(), Propagation::Private)?;
        if has("ro") || has("rro") {
            propagation::set_read_only(mount.as_fd(), has("rro"))?;
        }
        Ok(mount)
    };
    make().map_err(Fault::io(format!("cannot use {} for the container's /dev", source.display())))
}

fn copy(path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(CWD, path, flags)
}

fn put(mount: &OwnedFd, place: &Path) -> rustix::io::Result<()> {
    rustix::mount::move_mount(mount, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_mount_over_dev_nothing_changes() {
        let mut spec = oci::Spec::default();
        let mounts = vec![fresh(DEV, "tmpfs", &[]), fresh("/data", "bind", &["rbind"])];
        spec.set_mounts(Some(mounts.clone()));
        assert!(DevMount::take_from(&mut spec).expect("looked at").is_none());
        assert_eq!(spec.mounts(), &Some(mounts));
    }
}
