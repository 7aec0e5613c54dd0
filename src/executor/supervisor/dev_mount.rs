//! A container's /dev while the runtime works in it.
//!
//! The runtime makes devices and links in whatever is mounted at /dev last, and takes /dev/ptmx away there. That must
//! be a file system of the container's own: were it a volume, or the node's /dev, its files would go. So
//!
//! * everything else is mounted before /dev, whose fresh tmpfs covers what a link may have led there;
//! * what was asked for over /dev itself (drivers of storage and devices ask for the node's), or deeper below it than one
//!   name, where a volume's links could lead back to it, is mounted aside first and put in its place when the runtime
//!   is done.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::fault::{Fault, Result};
use super::runtime::oci;

/// Where.
const DEV: &str = "/dev";
/// Where the runtime looks for a terminal.
const TERMINALS: &str = "/dev/pts";

/// Mounts aside, and where they belong, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DevMounts {
    places: Vec<(PathBuf, PathBuf)>,
    /// Whether one of them covers /dev.
    covered: bool,
}

impl DevMounts {
    /// Orders the mounts of the specification as the module says.
    pub fn take_from(spec: &mut oci::Spec) -> Self {
        let Some(mounts) = spec.mounts_mut() else { return Self::default() };
        let (inside, mut all): (Vec<_>, Vec<_>) =
            std::mem::take(mounts).into_iter().partition(|mount| mount.destination().starts_with(DEV));
        let covers = |mount: &oci::Mount| mount.destination() == Path::new(DEV) && is_bind(mount);
        let mut taken = Self { places: Vec::new(), covered: inside.iter().any(covers) };
        if !inside.iter().any(|mount| mount.destination() == Path::new(DEV) && !is_bind(mount)) {
            all.push(fresh(DEV, "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]));
        }
        if taken.covered {
            // Only for a terminal of the container's; it is covered in the end.
            all.push(fresh(TERMINALS, "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666"]));
        }
        for mut mount in inside {
            let deep = mount.destination().components().count() > Path::new(TERMINALS).components().count();
            if is_bind(&mount) && (taken.covered || deep) {
                let aside = Path::new(DEV).join(format!(".mount-{}", taken.places.len()));
                taken.places.push((aside.clone(), mount.destination().clone()));
                mount.set_destination(aside);
            }
            all.push(mount);
        }
        *mounts = all;
        taken
    }

    /// Whether there is nothing to be done.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Puts them where they belong. In the container's mounts, before its program runs.
    pub fn attach(&self) -> Result<()> {
        let mut detached = Vec::new();
        for (aside, place) in &self.places {
            detached.push((detach(aside).map_err(failed(place))?, place));
        }
        detached.iter().try_for_each(|(mount, place)| self.put(mount, place).map_err(failed(place)))
    }

    /// Links are not followed: what is below /dev may be a volume's.
    fn put(&self, mount: &OwnedFd, place: &Path) -> io::Result<()> {
        if !self.covered {
            make_place(mount, place)?;
        }
        let target = open(place)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
    }
}

fn is_bind(mount: &oci::Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
}

fn open(place: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(CWD, place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// Takes a mount off its place, and the place away.
fn detach(aside: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let mount = rustix::mount::open_tree(CWD, aside, flags)?;
    rustix::mount::unmount(aside, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    match fs::remove_dir(aside) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(aside)?,
        other => other?,
    }
    Ok(mount)
}

/// In the container's own /dev, or in a volume that is mounted in it: directories, and at their end what the mount is.
fn make_place(mount: &OwnedFd, place: &Path) -> io::Result<()> {
    let directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(mount)?.st_mode).is_dir();
    let mut path = PathBuf::from(DEV);
    let names: Vec<&OsStr> = place.strip_prefix(DEV).unwrap_or(place).iter().collect();
    for (number, name) in names.iter().enumerate() {
        let parent = open(&path)?;
        let made = if number + 1 < names.len() || directory {
            rustix::fs::mkdirat(&parent, *name, Mode::from_raw_mode(0o755))
        } else {
            rustix::fs::mknodat(&parent, *name, rustix::fs::FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
        };
        made.or_else(|errno| if errno == Errno::EXIST { Ok(()) } else { Err(errno) })?;
        path.push(name);
    }
    Ok(())
}

/// Mostly the request's fault: what lies over /dev has no such name, or a link in its place.
fn failed(place: &Path) -> impl FnOnce(io::Error) -> Fault {
    let text = format!("cannot mount what was asked for at {}", place.display());
    move |error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Fault::invalid(format!("{text}: what is mounted above it has no such file or directory"))
        }
        _ if error.raw_os_error() == Some(libc::ELOOP) => {
            Fault::invalid(format!("{text}: a symbolic link is in its way"))
        }
        _ => Fault::io(text)(error),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(mounts: &[(&str, &str)]) -> (Vec<String>, DevMounts) {
        let mut spec = oci::Spec::default();
        spec.set_mounts(Some(mounts.iter().map(|(place, kind)| fresh(place, kind, &[])).collect()));
        let taken = DevMounts::take_from(&mut spec);
        let mounts = spec.mounts().iter().flatten();
        (
            mounts.map(|m| format!("{} {}", m.destination().display(), m.typ().clone().unwrap_or_default())).collect(),
            taken,
        )
    }

    #[test]
    fn dev_comes_last_and_what_lies_deep_in_it_or_over_it_later() {
        let (list, taken) = ordered(&[("/dev", "tmpfs"), ("/data", "bind"), ("/dev/shm", "bind"), ("/d", "bind")]);
        assert_eq!(list, ["/data bind", "/d bind", "/dev tmpfs", "/dev/shm bind"]);
        assert!(taken.is_empty());

        let (list, taken) = ordered(&[("/dev", "tmpfs"), ("/dev/a", "bind"), ("/dev/a/b", "bind")]);
        assert_eq!(list, ["/dev tmpfs", "/dev/a bind", "/dev/.mount-0 bind"]);
        assert_eq!(taken.places, [("/dev/.mount-0".into(), "/dev/a/b".into())]);

        let (list, taken) = ordered(&[("/dev", "bind"), ("/dev", "bind"), ("/proc", "proc"), ("/dev/sub", "bind")]);
        let aside = ["/dev/.mount-0 bind", "/dev/.mount-1 bind", "/dev/.mount-2 bind"];
        assert_eq!(list[..3], ["/proc proc", "/dev tmpfs", "/dev/pts devpts"]);
        assert_eq!(list[3..], aside);
        let places: Vec<_> = taken.places.iter().map(|(_, place)| place.as_path()).collect();
        assert_eq!(places, [Path::new("/dev"), Path::new("/dev"), Path::new("/dev/sub")]);
    }
}
