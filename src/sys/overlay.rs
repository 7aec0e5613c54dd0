//! Overlay mounts that are attached nowhere: the descriptor is the mount, and goes with its last holder.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_change, move_mount,
    open_tree,
};

use super::owners::show_as;

/// The kernel takes no longer value in one fsconfig call, the NUL included.
const VALUE_LIMIT_BYTES: usize = 255;
/// Bytes of the kernel's explanation that are kept.
const EXPLANATION_LIMIT_BYTES: usize = 1024;
/// What the mount is called in mountinfo.
const SOURCE: &str = "overlay";

/// What is stacked.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// Read-only directories, the topmost first; two at least where there is no upper.
    pub lower: &'a [PathBuf],
    /// Where writes go, and overlayfs' own directory beside it; none: the mount is read-only.
    pub upper: Option<(&'a Path, &'a Path)>,
    /// Overlay's attributes are `user.overlay.*`: needed without real root.
    pub user_attributes: bool,
    /// The user namespace as whose the files of the lower directories are shown; none: as they are.
    pub owners: Option<BorrowedFd<'a>>,
}

impl Overlay<'_> {
    /// Makes the mount. Blocking.
    pub fn mount(&self) -> io::Result<OwnedFd> {
        let Some(user_namespace) = self.owners else { return self.mount_as_they_are() };
        in_private_namespace(|| {
            // Each over itself: overlayfs finds them by the same paths.
            for path in self.lower {
                let layer = clone_tree(path, false)?;
                show_as(layer.as_fd(), user_namespace, false)?;
                move_mount(&layer, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            }
            self.mount_as_they_are()
        })
    }

    fn mount_as_they_are(&self) -> io::Result<OwnedFd> {
        match self.mount_with_fsconfig() {
            // Kernels before 6.5 know only the one string with all layers.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => self.mount_classic().map_err(|_| e),
            result => result,
        }
    }

    fn mount_with_fsconfig(&self) -> io::Result<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        self.configure(context.as_fd()).map_err(|e| explain(context.as_fd(), e))
    }

    fn configure(&self, context: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        fsconfig_set_string(context, "source", SOURCE)?;
        if self.user_attributes {
            fsconfig_set_flag(context, "userxattr")?;
        }
        for path in self.lower {
            set_path(context, "lowerdir+", path)?;
        }
        let mut attributes = MountAttrFlags::empty();
        match self.upper {
            Some((upper, work)) => {
                set_path(context, "upperdir", upper)?;
                set_path(context, "workdir", work)?;
            }
            None => attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY,
        }
        fsconfig_create(context)?;
        Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    }

    /// By mount(2), in a mount namespace that lives as long as the thread that makes it.
    pub fn mount_classic(&self) -> io::Result<OwnedFd> {
        let target = self.lower.first().ok_or(io::ErrorKind::InvalidInput)?;
        in_private_namespace(|| {
            // Names by descriptor: short, so that more fit in the one page, and without a comma or colon. Opened in
            // here, for overlayfs takes only directories of its own mount namespace.
            let lower = self.lower.iter().map(|path| open_path(path)).collect::<io::Result<Vec<_>>>()?;
            let upper = self.upper.map(|(upper, work)| io::Result::Ok((open_path(upper)?, open_path(work)?)));
            let upper = upper.transpose()?;
            let options = std::ffi::CString::new(self.classic_options(&lower, upper.as_ref()))?;
            let flags = if upper.is_some() { MountFlags::empty() } else { MountFlags::RDONLY };
            mount(SOURCE, target, "overlay", flags, Some(options.as_c_str()))?;
            Ok(open_tree(CWD, target, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
        })
    }

    fn classic_options(&self, lower: &[OwnedFd], upper: Option<&(OwnedFd, OwnedFd)>) -> String {
        let names: Vec<String> = lower.iter().map(|fd| descriptor_path(fd.as_fd())).collect();
        let mut options = format!("lowerdir={}", names.join(":"));
        if let Some((upper, work)) = upper {
            let (upper, work) = (descriptor_path(upper.as_fd()), descriptor_path(work.as_fd()));
            options += &format!(",upperdir={upper},workdir={work}");
        }
        if self.user_attributes {
            options.push_str(",userxattr");
        }
        options
    }
}

/// A detached mount of a plain directory.
pub fn clone_tree(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    if read_only {
        set_read_only(tree.as_fd())?;
    }
    Ok(tree)
}

/// A detached copy of `path` and of everything mounted below it; a peer of each mount that is shared.
pub fn clone_whole_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// As [`clone_whole_tree`], of what is open.
pub fn clone_opened_tree(opened: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(opened, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?)
}

fn set_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a NUL-terminated constant, the structure outlives the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn in_private_namespace(work: impl FnOnce() -> io::Result<OwnedFd> + Send) -> io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only this thread's file system context and mount namespace change, and the thread ends here.
            if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } != 0 {
                return Err(io::Error::last_os_error());
            }
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })
}

fn set_path(context: BorrowedFd<'_>, key: &str, path: &Path) -> io::Result<()> {
    if path.as_os_str().len() < VALUE_LIMIT_BYTES {
        return Ok(fsconfig_set_string(context, key, path)?);
    }
    let directory = open_path(path)?;
    Ok(fsconfig_set_string(context, key, descriptor_path(directory.as_fd()))?)
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Adds what the kernel wrote into the context's log.
fn explain(context: BorrowedFd<'_>, error: io::Error) -> io::Error {
    let mut text = vec![0; EXPLANATION_LIMIT_BYTES];
    match rustix::io::read(context, &mut text) {
        Ok(count) => {
            let text = String::from_utf8_lossy(&text[..count]);
            // The kind and number stay readable for the caller who looks for them.
            tracing::debug!("overlay: {}", text.trim_end());
            error
        }
        Err(_) => error,
    }
}
