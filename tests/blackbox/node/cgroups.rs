//! The cgroup v2 that was delegated to the tests, seen from outside of the node. Where there is none (a machine without
//! controllers), tests of limits say that they are skipped; `scripts/vm test` runs them where there is.

use std::fs;
use std::path::{Path, PathBuf};

const MOUNT: &str = "/sys/fs/cgroup";
const WANTED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// The cgroup that becomes the top of the node: that around the leaf `daemon`, which this process was started in;
/// root's is the top of all.
pub fn base() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = Path::new(MOUNT).join(text.lines().find_map(|line| line.strip_prefix("0::/"))?);
    let base = match rustix::process::geteuid().is_root() {
        true => Path::new(MOUNT),
        false => own.parent().filter(|_| own.ends_with("daemon"))?,
    };
    let controllers = fs::read_to_string(base.join("cgroup.controllers")).ok()?;
    let all = WANTED.iter().all(|wanted| controllers.split_ascii_whitespace().any(|name| name == *wanted));
    all.then(|| base.to_owned())
}

/// What is left of a node's pods: in a base of our own nothing else is, beside the daemon.
pub fn left() -> Vec<PathBuf> {
    match base() {
        Some(top) if top == Path::new(MOUNT) => below(&top.join("cricket"), &[]),
        Some(base) => below(&base, &["daemon"]),
        None => Vec::new(),
    }
}

/// [`base`], or a word about why the test does nothing here.
pub fn base_or_skip(test: &str) -> Option<PathBuf> {
    let base = base();
    if base.is_none() {
        eprintln!("{test}: skipped: no cgroup v2 controllers are delegated here; `scripts/vm test limits` has them");
    }
    base
}

/// Every cgroup below `top`, without the subtrees that `except` names, relative to it.
pub fn below(top: &Path, except: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !except.iter().any(|skip| name == *skip) {
            found.extend(below(&entry.path(), &[]).into_iter().map(|path| Path::new(&name).join(path)));
            found.push(name.into());
        }
    }
    found
}

/// Removes `top` and every cgroup below it, which are empty or about to be; that there is none is fine. A process that has
/// ended is in its cgroup until the kernel is done with it.
#[track_caller]
pub fn remove(top: &Path) {
    let end = std::time::Instant::now() + super::patience();
    loop {
        let all = below(top, &[]).into_iter().map(|below| top.join(below)).chain([top.to_owned()]);
        let refused = all.filter(|path| fs::remove_dir(path).is_err_and(|e| e.kind() != std::io::ErrorKind::NotFound));
        let Some(path) = refused.last() else { return };
        let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        assert!(std::time::Instant::now() < end, "{} is not empty: {members:?}", path.display());
        std::thread::sleep(super::GLANCE);
    }
}

/// The one cgroup below `top` whose last part holds `id`.
#[track_caller]
pub fn of(top: &Path, id: &str) -> PathBuf {
    let all = below(top, &[]);
    let mut named = all.iter().filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(id)));
    match (named.next(), named.next()) {
        (Some(one), None) => top.join(one),
        _ => panic!("not one cgroup of {id} below {}: {all:?}", top.display()),
    }
}

/// A file of a cgroup, without the end of its line.
#[track_caller]
pub fn read(cgroup: &Path, file: &str) -> String {
    let path = cgroup.join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim_end().to_owned()
}
