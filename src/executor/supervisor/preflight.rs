//! What the root file system of an image must not be, looked at before the runtime mounts anything into it.
//!
//! The runtime mounts over /proc, /sys and /dev of the root by path. Were one of them a symbolic link, the mount, and
//! the device nodes that follow, would land outside. Nothing else runs in the root yet, so what is seen here is what
//! the runtime will find.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::fault::{Fault, Result};
use super::runtime::oci;
use super::sources::Moved;

/// Places that must be directories, or absent.
const DIRECTORIES: &[&str] = &["proc", "sys", "dev"];

/// Field of a line of mountinfo.
const MOUNT_POINT: usize = 4;

/// Refuses a root that is not fit.
pub fn check(root: impl AsFd) -> Result<()> {
    for name in DIRECTORIES {
        match rustix::fs::statat(&root, *name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {}
            Err(Errno::NOENT) => {}
            Ok(stat) => {
                let kind = FileType::from_raw_mode(stat.st_mode);
                return Err(Fault::image(format!(
                    "/{name} of the image is a {kind:?} and not a directory; it is not run"
                )));
            }
            Err(errno) => return Err(Fault::io(format!("cannot look at /{name} of the image"))(errno)),
        }
    }
    Ok(())
}

/// Refuses a mount of a file on a directory, or of a directory on anything else: the kernel's word for it names
/// neither. What lies below another mount is not the image's, and not looked at.
pub fn check_sources<'a>(root: &Path, mounts: impl Iterator<Item = &'a oci::Mount>, moved: &[Moved]) -> Result<()> {
    let root = File::open(root).map_err(Fault::io("cannot open the container's root"))?;
    let mut earlier: Vec<&Path> = Vec::new();
    for mount in mounts {
        let place = mount.destination();
        if leads_into_dev(&root, place) {
            return Err(Fault::image(format!(
                "a link of the image leads the mount at {} into /dev; it is not run",
                place.display()
            )));
        }
        let covered = earlier.iter().any(|above| place.starts_with(above));
        earlier.push(place);
        let source = mount.source().as_ref().filter(|_| mount.typ().as_deref() == Some("bind") && !covered);
        let Some(source) = source else { continue };
        let Some((what, on)) = fs::metadata(source).ok().map(|m| m.is_dir()).zip(is_directory(&root, place)) else {
            continue;
        };
        if what != on {
            let word = |directory| if directory { "a directory" } else { "a file" };
            let named = moved.iter().find(|moved| moved.place == *source).map_or(source, |moved| &moved.source);
            let (source, place) = (named.display(), place.display());
            return Err(Fault::invalid(format!(
                "{source} is {} and cannot be mounted at {place}: that is {} in the image",
                word(what),
                word(on)
            )));
        }
    }
    Ok(())
}

/// Though its text does not say so.
fn leads_into_dev(root: &File, path: &Path) -> bool {
    let dev = |path: &Path| -> Option<PathBuf> {
        fs::read_link(format!("/proc/self/fd/{}", find(root, path)?.as_raw_fd())).ok()
    };
    !path.starts_with("/dev")
        && dev(Path::new("/dev")).zip(dev(path)).is_some_and(|(dev, found)| found.starts_with(dev))
}

fn find(root: &File, path: &Path) -> Option<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).ok()
}

/// What a path leads to inside the root, if it is there.
fn is_directory(root: &File, path: &Path) -> Option<bool> {
    Some(FileType::from_raw_mode(rustix::fs::fstat(find(root, path)?).ok()?.st_mode).is_dir())
}

/// Refuses a container, made but not started, whose mounts ended up below /proc though none was to be there: a link of
/// the image led them. What is written to /proc/self would go to the image's files.
pub fn check_mounts(pid: i32, wanted: &[PathBuf]) -> Result<()> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo"))
        .map_err(Fault::io("cannot look at the container's mounts"))?;
    match stray_mount(&table, wanted) {
        Some(stray) => {
            let links = "a link of the image leads a mount there";
            Err(Fault::image(format!(
                "{} of the container is covered by a mount: {links}; it is not run",
                stray.display()
            )))
        }
        None => Ok(()),
    }
}

fn stray_mount(table: &str, wanted: &[PathBuf]) -> Option<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(MOUNT_POINT)).map(Path::new);
    let mut strays = points.filter(|point| {
        point.starts_with("/proc") && *point != Path::new("/proc") && !wanted.iter().any(|path| path == point)
    });
    strays.next().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::proto::supervisor::ErrorKind;

    #[test]
    fn a_mount_below_proc_that_nobody_asked_for_is_found() {
        let line = |point: &str| format!("99 98 0:5 / {point} rw,relatime - ext4 /dev/vda rw\n");
        let good = line("/") + &line("/proc") + &line("/proc/sys") + &line("/process/1") + &line("/data");
        let wanted = [PathBuf::from("/proc/sys")];
        assert_eq!(stray_mount(&good, &wanted), None);
        for stray in ["/proc/1", "/proc/1/attr", "/proc/sys/kernel"] {
            assert_eq!(stray_mount(&(good.clone() + &line(stray)), &wanted), Some(stray.into()));
        }
    }

    #[test]
    fn a_root_whose_mount_points_are_links_or_files_is_refused() {
        let base = std::env::temp_dir().join(format!("cricket-preflight-{}", std::process::id()));
        for (name, good) in [("none", true), ("directory", true), ("link", false), ("dangling", false), ("file", false)]
        {
            let root = base.join(name);
            fs::create_dir_all(&root).expect("a root");
            match name {
                "directory" => fs::create_dir(root.join("dev")).expect("a directory"),
                "link" => symlink("/tmp", root.join("dev")).expect("a link"),
                "dangling" => symlink("nowhere", root.join("proc")).expect("a link"),
                "file" => fs::write(root.join("sys"), "x").expect("a file"),
                _ => {}
            }
            let checked = check(fs::File::open(&root).expect("opened"));
            assert_eq!(checked.is_ok(), good, "{name}");
            assert!(good || checked.expect_err("refused").kind == ErrorKind::BadImage);
        }
        fs::remove_dir_all(base).expect("removed");
    }
}
