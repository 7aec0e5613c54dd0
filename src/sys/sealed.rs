//! Our own binary as nobody can write it, to be executed where a container could reach it through /proc/PID/exe
//! (CVE-2019-5736; without root our own uid owns the file).
//!
//! It is executed through a detached overlay mount without an upper directory: a file system that cannot be written
//! or be made writable, whose pages are those of the file itself, so it costs no memory. Where overlay refuses
//! the file system on which the binary lies, a sealed copy in memory takes its place.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// Lower numbers are where a child finds what it is given; the path of the binary must not come to mean that.
const LOWEST_DESCRIPTOR: i32 = 32;
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// Opens our binary so that no process which executes it gives access to it. Asks for CAP_SYS_ADMIN in the user
/// namespace that owns our mount namespace, or else for memory of the binary's size.
pub fn seal() -> io::Result<OwnedFd> {
    let sealed = through_overlay().or_else(|_| in_memory())?;
    Ok(rustix::io::fcntl_dupfd_cloexec(sealed, LOWEST_DESCRIPTOR)?)
}

/// The path by which this process, or a child that it has just forked, executes `sealed`.
pub fn path(sealed: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", sealed.as_fd().as_raw_fd()))
}

/// Whether the binary that this process executes is a sealed one: found out by trying to open it for writing.
pub fn is_sealed() -> bool {
    match rustix::fs::open(OWN_EXECUTABLE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::ROFS) => true,
        _ => File::open(OWN_EXECUTABLE)
            .is_ok_and(|file| rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS))),
    }
}

const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

fn through_overlay() -> io::Result<OwnedFd> {
    let executable = fs::read_link(OWN_EXECUTABLE)?;
    let (Some(directory), Some(name)) = (executable.parent(), executable.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    };
    let lower = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // After an upgrade the name is another file's.
    same_file(&lower, name)?;
    // Overlay wants two lower directories where there is no upper one.
    let empty = detached("tmpfs", &[])?;
    let lowers = format!("{}:{}", path(&lower).display(), path(&empty).display());
    let overlay = detached("overlay", &[("lowerdir", &lowers)])?;
    Ok(rustix::fs::openat(overlay, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

fn same_file(directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let there = rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    let own = fs::metadata(OWN_EXECUTABLE)?;
    if (there.st_dev, there.st_ino) == (own.dev(), own.ino()) {
        Ok(())
    } else {
        Err(io::Error::other(format!("{} is not the file that runs", Path::new(name).display())))
    }
}

fn detached(kind: &str, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn in_memory() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 know no MFD_EXEC, and need none.
    let copy = rustix::fs::memfd_create("cricket", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("cricket", flags))?;
    let mut copy = File::from(copy);
    io::copy(&mut File::open(OWN_EXECUTABLE)?, &mut copy)?;
    rustix::fs::fchmod(&copy, Mode::RUSR | Mode::XUSR | Mode::RGRP | Mode::XGRP)?;
    rustix::fs::fcntl_add_seals(&copy, SEALS)?;
    // A descriptor that was opened for writing would make execve answer ETXTBSY.
    Ok(rustix::fs::open(path(&copy), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_in_memory_runs_and_cannot_be_written() {
        let sealed = in_memory().expect("sealed");
        let status = std::process::Command::new(path(&sealed)).arg("--list").output().expect("it runs").status;
        assert!(status.success());
        // Root may open it for writing; nobody may write.
        if let Ok(file) = rustix::fs::open(path(&sealed), OFlags::WRONLY, Mode::empty()) {
            assert_eq!(rustix::io::write(&file, b"x"), Err(rustix::io::Errno::PERM));
            assert_eq!(rustix::fs::ftruncate(&file, 0), Err(rustix::io::Errno::PERM));
        }
    }
}
