//! Paths that come from outside: inside a container, below a log directory, on the node. Lexical rules only; what a
//! path leads to is decided by descriptor where it is opened.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use crate::pod::error::{PodError, quoted};
use crate::sys::owners::IdRange;
use crate::sys::removal;

/// Longest path that is taken: PATH_MAX.
const PATH_LIMIT_BYTES: usize = 4096;

/// An absolute path inside a container, without `.`, `..` and doubled slashes.
pub(crate) fn inside(what: &str, path: &str) -> Result<PathBuf, PodError> {
    if !path.starts_with('/') || path.len() > PATH_LIMIT_BYTES || path.contains('\0') {
        return Err(PodError::invalid(format!("{what} {:?} is not an absolute path", quoted(path))));
    }
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            // As the kernel does at the root: a path never leads above it.
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(clean)
}

/// An absolute path on the node, free of `..`.
pub(crate) fn on_node(what: &str, path: &str) -> Result<PathBuf, PodError> {
    let clean = inside(what, path)?;
    if Path::new(path).components().any(|c| c == Component::ParentDir) {
        return Err(PodError::invalid(format!("{what} {:?} must not contain \"..\"", quoted(path))));
    }
    Ok(clean)
}

/// A relative path of plain names below some directory.
pub(crate) fn below(what: &str, path: &str) -> Result<PathBuf, PodError> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || !plain || path.ends_with('/') || path.len() > PATH_LIMIT_BYTES || path.contains('\0') {
        return Err(PodError::invalid(format!("{what} {:?} must be a relative path without \"..\"", quoted(path))));
    }
    Ok(PathBuf::from(path))
}

/// Whether `path` below `directory` can be created or opened for writing without following a symbolic link out of it
/// or anywhere; directories on the way are made.
pub(crate) fn prepare_below(directory: &Path, path: &Path) -> Result<(), PodError> {
    let fail = |error: std::io::Error| {
        PodError::invalid(format!(
            "{} below {} cannot be used: {error}; neither links nor special files are taken",
            path.display(),
            directory.display()
        ))
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut parent = File::open(directory).map_err(fail)?;
    let names: Vec<_> = path.components().collect();
    let (file, folders) = names.split_last().expect("a checked path has a name");
    for folder in folders {
        let name = folder.as_os_str();
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(fail(error.into())),
        }
        let next = openat2(&parent, name, flags | OFlags::DIRECTORY, Mode::empty(), resolve);
        parent = next.map_err(|e| fail(e.into()))?.into();
    }
    match openat2(&parent, file.as_os_str(), flags | OFlags::NOFOLLOW, Mode::empty(), resolve) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(fail(error.into())),
        Ok(found) => check_regular(&found).map_err(fail),
    }
}

fn check_regular(file: impl AsFd) -> std::io::Result<()> {
    match FileType::from_raw_mode(fstat(file)?.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(std::io::Error::other("it is not a regular file")),
    }
}

/// Reads a regular file of a container's root file system as the container would find it, links resolved inside the
/// root; `None` when it is not there.
pub(crate) fn read_in_root(root: impl AsFd, path: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, PodError> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    read_checked(root, Path::new(path), limit_bytes, OFlags::empty(), resolve)
        .map_err(|e| PodError::precondition(format!("the image's {path} cannot be read: {e}")))
}

/// Reads a regular file that a request names on the node; the last component may not be a link.
pub(crate) fn read_on_node(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, PodError> {
    let root = File::open("/").map_err(|e| PodError::io("open /", &e))?;
    read_checked(root, path, limit_bytes, OFlags::NOFOLLOW, ResolveFlags::NO_MAGICLINKS)
        .and_then(|found| found.ok_or_else(|| std::io::Error::other("there is no such file")))
        .map_err(|e| PodError::invalid(format!("{} cannot be read: {e}", path.display())))
}

fn read_checked(
    root: impl AsFd,
    path: &Path,
    limit_bytes: u64,
    extra: OFlags,
    resolve: ResolveFlags,
) -> std::io::Result<Option<Vec<u8>>> {
    // O_NONBLOCK: opening a FIFO must not wait for a writer. What was opened is checked before it is read.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | extra;
    let file = match openat2(root, path, flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        other => File::from(other?),
    };
    check_regular(&file)?;
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(std::io::Error::other(format!("it is larger than {limit_bytes} bytes")));
    }
    Ok(Some(bytes))
}

/// Makes a directory of a container's root file system and those above it, links resolved inside the root. One that is
/// there is fine. The container is not there yet: nobody changes the tree meanwhile.
/// What is made belongs to root, or to the root of `ids`.
pub(crate) fn make_in_root(root: impl AsFd, path: &Path, ids: Option<IdRange>) -> Result<(), PodError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = |path: &Path| openat2(&root, path, flags, Mode::empty(), resolve);
    if open(path).is_ok() {
        return Ok(());
    }
    let fail = |error: rustix::io::Errno| {
        PodError::precondition(format!("the directory {} cannot be made in the image: {error}", path.display()))
    };
    let mut made = PathBuf::from("/");
    for component in path.components().filter(|c| matches!(c, Component::Normal(_))) {
        let parent = open(&made).map_err(fail)?;
        match rustix::fs::mkdirat(&parent, component.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) => give_to_root_of(ids, &parent, component.as_os_str()).map_err(fail)?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(fail(error)),
        }
        made.push(component);
    }
    open(&made).map(drop).map_err(fail)
}

fn give_to_root_of(ids: Option<IdRange>, parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    let Some(ids) = ids else { return Ok(()) };
    let (uid, gid) = (rustix::fs::Uid::from_raw(ids.first), rustix::fs::Gid::from_raw(ids.first));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
}

/// Removes a directory tree; that there is none is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<(), PodError> {
    // It goes on while something is put in: marks of answers come late.
    removal::remove_path(path).map_err(|e| PodError::io(format_args!("remove {}", path.display()), &e.into()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("cricket-paths-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    #[test]
    fn paths_inside_a_container_are_normalised_and_never_leave_it() {
        for (given, expected) in [("/", "/"), ("/a/../../etc", "/etc"), ("//a/./b/", "/a/b")] {
            assert_eq!(inside("x", given).expect("a path"), PathBuf::from(expected));
        }
        for bad in ["", "a", "./a", "/a\0b", &format!("/{}", "a".repeat(PATH_LIMIT_BYTES))] {
            assert!(inside("x", bad).is_err(), "{bad:?}");
        }
        assert!(on_node("x", "/a/../b").is_err());
    }

    #[test]
    fn a_log_path_stays_below_its_directory() {
        for good in ["app/0.log", "a.log"] {
            assert!(below("x", good).is_ok());
        }
        for bad in ["", "/abs", "../up", "a/../../b", "a/", "."] {
            assert!(below("x", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_link_or_device_at_the_log_path_is_refused() {
        let dir = scratch("log");
        std::os::unix::fs::symlink("/etc/passwd", dir.join("link")).expect("a link");
        std::os::unix::fs::symlink("/tmp", dir.join("out")).expect("a link");
        fs::write(dir.join("file"), "").expect("a file");
        for (path, good) in [("file", true), ("new", true), ("sub/new", true), ("link", false), ("out/x", false)] {
            assert_eq!(prepare_below(&dir, Path::new(path)).is_ok(), good, "{path}");
        }
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn files_of_an_image_are_bounded_regular_and_found_inside_the_root() {
        let dir = scratch("root");
        fs::write(dir.join("real"), "root:x:0:0").expect("a file");
        std::os::unix::fs::symlink("/real", dir.join("link")).expect("a link");
        std::os::unix::fs::symlink("/dev/zero", dir.join("zero")).expect("a link");
        rustix::fs::mknodat(rustix::fs::CWD, dir.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .expect("a FIFO");
        let root = File::open(&dir).expect("opened");
        assert_eq!(read_in_root(&root, "/link", 100).expect("read").expect("there"), b"root:x:0:0");
        assert!(read_in_root(&root, "/missing", 100).expect("read").is_none());
        assert!(read_in_root(&root, "/zero", 100).expect("read").is_none(), "the root has no /dev/zero");
        assert!(read_in_root(&root, "/fifo", 100).is_err());
        assert!(read_in_root(&root, "/real", 5).is_err());
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn directories_are_made_inside_the_root_whatever_links_say() {
        let dir = scratch("make");
        fs::create_dir(dir.join("real")).expect("a directory");
        std::os::unix::fs::symlink("/real", dir.join("link")).expect("a link");
        std::os::unix::fs::symlink("../../../..", dir.join("up")).expect("a link");
        std::os::unix::fs::symlink("/nowhere", dir.join("dangling")).expect("a link");
        let root = File::open(&dir).expect("opened");
        for path in ["/a/b", "/link/c", "/up/d", "/a/b"] {
            make_in_root(&root, Path::new(path), None).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
        assert!(dir.join("a/b").is_dir() && dir.join("real/c").is_dir() && dir.join("d").is_dir());
        assert!(make_in_root(&root, Path::new("/dangling/x"), None).is_err());
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn files_named_by_a_request_are_no_links_and_no_devices() {
        let dir = scratch("node");
        fs::write(dir.join("real"), "{}").expect("a file");
        std::os::unix::fs::symlink(dir.join("real"), dir.join("link")).expect("a link");
        assert_eq!(read_on_node(&dir.join("real"), 10).expect("read"), b"{}");
        assert!(read_on_node(&dir.join("link"), 10).is_err());
        assert!(read_on_node(Path::new("/dev/zero"), 10).is_err());
        fs::remove_dir_all(&dir).expect("removed");
    }
}
