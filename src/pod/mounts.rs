//! The mounts of a container: what every container has, the pod's own files, and what the request asks for, ordered by
//! destination so that nothing hides what is to be mounted below it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::pod::error::{PodError, quoted};
use crate::pod::paths;
use crate::pod::spec::{Container, ROOT, oci};
use crate::proto::{cri, supervisor as wire};
use crate::sys::owners::IdRange;

/// Most mounts of a request; a kubelet sends a few dozen.
const MOUNT_LIMIT: usize = 4096;
/// What may be mounted below /proc, as other runtimes have it (lxcfs does). Anything else there could make what is
/// written to /proc/self go to the container's own files.
const BELOW_PROC: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
];
/// Options of a single mount that a request may add.
const OPTIONS: [&str; 5] = ["noexec", "nosuid", "nodev", "noatime", "ro"];
/// Group of terminals, by convention.
const TTY_GROUP: u32 = 5;

/// What a container gets mounted.
#[derive(Debug)]
pub(crate) struct Mounts {
    pub(crate) list: Vec<oci::Mount>,
    /// For the supervisor: libcontainer ignores the propagation of single mounts.
    pub(crate) propagations: Vec<wire::Propagation>,
}

impl Mounts {
    /// Whether a mount inside is to be seen outside, for which the root has to be shared as well.
    pub(crate) fn is_shared(&self) -> bool {
        self.propagations.iter().any(|p| p.mode == "shared")
    }
}

/// Everything, ordered.
pub(crate) fn resolve(container: &Container<'_>) -> Result<Mounts, PodError> {
    if container.config.mounts.len() > MOUNT_LIMIT {
        return Err(PodError::invalid(format!("more than {MOUNT_LIMIT} mounts")));
    }
    let mut list = base(container);
    list.extend(own_files(container));
    let (mut wishes, mut propagations) = (Vec::new(), Vec::new());
    list.extend(declared_volumes(container));
    for (number, wish) in container.config.mounts.iter().enumerate() {
        let mount = bind(wish, container.volumes.source_of(number), container.ids)?;
        // The request's mount takes the place of ours, and of what ours has below it.
        list.retain(|ours| !ours.destination().starts_with(mount.destination()));
        propagations.push(propagation(wish, mount.destination()));
        wishes.push(mount);
    }
    list.extend(wishes);
    list.sort_by_key(|mount| mount.destination().components().count());
    Ok(Mounts { list, propagations })
}

fn mount(destination: &str, kind: &str, source: impl Into<PathBuf>, options: &[&str]) -> oci::Mount {
    let mut mount = oci::Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
    mount
}

/// A file system of a namespace that is the node's cannot be mounted afresh in a user namespace: it is bound.
fn base(container: &Container<'_>) -> Vec<oci::Mount> {
    let writable = if container.security().privileged { "rw" } else { "ro" };
    let recursive = if container.security().privileged { "rw" } else { "rro" };
    let modes = container.modes;
    let proc = match modes.pid {
        wire::NamespaceMode::Node => mount("/proc", "bind", "/proc", &["rbind", "nosuid", "noexec", "nodev"]),
        _ => mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    };
    let sys = match modes.network {
        wire::NamespaceMode::Node => {
            mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", writable, recursive])
        }
        _ => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", writable]),
    };
    let mut terminals = mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666"]);
    let options = terminals.options_mut().get_or_insert_default();
    options.push("mode=0620".to_owned());
    let has_group = container.facts.maps_group(TTY_GROUP) && container.ids.is_none_or(|ids| ids.length > TTY_GROUP);
    options.extend(has_group.then(|| format!("gid={TTY_GROUP}")));
    let (queues, memory) = match modes.ipc {
        wire::NamespaceMode::Node => (
            mount("/dev/mqueue", "bind", real("/dev/mqueue"), &["rbind", "nosuid", "noexec", "nodev"]),
            mount("/dev/shm", "bind", real("/dev/shm"), &["rbind", "nosuid", "noexec", "nodev"]),
        ),
        _ => (
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/dev/shm", "bind", container.state_dir.join("shm"), &["rbind", "nosuid", "noexec", "nodev"]),
        ),
    };
    let mut list = vec![
        proc,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        terminals,
        memory,
        sys,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", writable]),
    ];
    if modes.ipc != wire::NamespaceMode::Node || Path::new("/dev/mqueue").is_dir() {
        list.push(queues);
    }
    list
}

/// The supervisor follows no link of a source, and some nodes have /run/shm.
fn real(place: &str) -> PathBuf {
    fs::canonicalize(place).unwrap_or_else(|_| place.into())
}

/// resolv.conf, hostname and hosts: bound from the pod's directory, never written into the image.
fn own_files(container: &Container<'_>) -> Vec<oci::Mount> {
    let writable = if container.security().readonly_rootfs { "ro" } else { "rw" };
    let file = |name: &str| {
        let source = container.state_dir.join(name);
        mount(&format!("/etc/{name}"), "bind", source, &["rbind", "nosuid", "noexec", "nodev", writable])
    };
    ["resolv.conf", "hostname", "hosts"].map(file).into()
}

/// The image's VOLUMEs stay writable under a read-only root: each is bound over itself before the root is closed.
fn declared_volumes(container: &Container<'_>) -> Vec<oci::Mount> {
    let places = container.volumes.declared.iter().filter(|_| container.security().readonly_rootfs);
    let root = container.bundle.join(ROOT);
    let bound = |place: &PathBuf| {
        let source = root.join(place.strip_prefix("/").unwrap_or(place));
        mount(place.to_str().expect("an image's volumes are texts"), "bind", source, &["rbind", "rw"])
    };
    places.map(bound).collect()
}

/// `volume`: where the supervisor will have attached what is mounted, when it is nothing that a path leads to.
fn bind(wish: &cri::Mount, volume: Option<&Path>, ids: Option<IdRange>) -> Result<oci::Mount, PodError> {
    let destination = destination(&wish.container_path)?;
    let whom = destination.display();
    let is_image = wish.image.as_ref().is_some_and(|i| !i.image.is_empty());
    let is_mapped = !wish.uid_mappings.is_empty() || !wish.gid_mappings.is_empty();
    if is_mapped && !ids.is_some_and(|ids| maps(&wish.uid_mappings, ids) && maps(&wish.gid_mappings, ids)) {
        return Err(PodError::invalid(format!("the mount at {whom} maps other ids than its pod's user namespace")));
    }
    let mut options = vec!["rbind"];
    if wish.recursive_read_only {
        let private = wish.propagation() == cri::MountPropagation::PropagationPrivate;
        if !wish.readonly || !private {
            return Err(PodError::invalid(format!(
                "RROUnsupported: the mount at {whom} is recursively read-only, so it must be readonly and private too"
            )));
        }
        options.extend(["ro", "rro"]);
    } else {
        options.push(if wish.readonly || is_image { "ro" } else { "rw" });
    }
    options.extend(further_options(wish)?);
    let source = match volume {
        Some(attached) => attached.to_owned(),
        None => source(&wish.host_path, &destination)?,
    };
    if destination == Path::new("/proc") && source != Path::new("/proc") {
        return Err(PodError::invalid("nothing but the node's /proc can be mounted at /proc"));
    }
    let mut mount = mount(destination.to_str().expect("made of a text"), "bind", source, &options);
    if let Some(ids) = ids.filter(|_| is_mapped && volume.is_none()) {
        mount.set_uid_mappings(Some(mappings(ids))).set_gid_mappings(Some(mappings(ids)));
    }
    Ok(mount)
}

fn maps(lines: &[cri::IdMapping], ids: IdRange) -> bool {
    matches!(lines, [line] if (line.container_id, line.host_id, line.length) == (0, ids.first, ids.length))
}

/// As the specification has them.
pub(crate) fn mappings(ids: IdRange) -> Vec<oci::LinuxIdMapping> {
    let line = oci::LinuxIdMappingBuilder::default().container_id(0u32).host_id(ids.first).size(ids.length);
    vec![line.build().expect("every field has a value")]
}

/// Of the mount, when the request names some.
fn further_options(wish: &cri::Mount) -> Result<Vec<&'static str>, PodError> {
    let known = |option: &String| OPTIONS.iter().copied().find(|known| known == option);
    let options = wish.mount_options.iter().map(|option| {
        known(option).ok_or_else(|| {
            let (place, option, known) = (quoted(&wish.container_path), quoted(option), OPTIONS.join(", "));
            PodError::invalid(format!("the mount at {place:?} has the option {option:?}; known are {known}"))
        })
    });
    options.collect()
}

pub(crate) fn destination(path: &str) -> Result<PathBuf, PodError> {
    // CRI-speaking clients send relative destinations now and then; they are meant from the root.
    let absolute = if path.starts_with('/') || path.is_empty() { path.to_owned() } else { format!("/{path}") };
    let clean = paths::inside("the mount destination", &absolute)?;
    if clean == Path::new("/") || absolute.split('/').any(|part| part == "..") {
        return Err(PodError::invalid(format!("nothing can be mounted at {:?}", quoted(path))));
    }
    let is_below_proc = clean.starts_with("/proc") && clean != Path::new("/proc");
    if is_below_proc && !BELOW_PROC.iter().any(|allowed| clean == Path::new(allowed)) {
        let allowed = BELOW_PROC.join(", ");
        return Err(PodError::invalid(format!(
            "nothing can be mounted at {:?}: of /proc only {allowed}",
            quoted(path)
        )));
    }
    Ok(clean)
}

/// The real path of the source: links are followed, and a directory is made where there is nothing.
pub(crate) fn source(path: &str, destination: &Path) -> Result<PathBuf, PodError> {
    let clean = paths::on_node(&format!("the source of the mount at {}", destination.display()), path)?;
    let refused = |what: &'static str| {
        let (source, destination) = (clean.display(), destination.display());
        move |error: std::io::Error| {
            PodError::precondition(format!("the source {source} of the mount at {destination} {what}: {error}"))
        }
    };
    let unusable = || refused("cannot be used");
    let real = match fs::canonicalize(&clean) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::create_dir_all(&clean).map_err(refused("is not there and cannot be made"))?;
            fs::canonicalize(&clean).map_err(unusable())
        }
        other => other.map_err(unusable()),
    }?;
    if real.starts_with(Path::new("/proc").join(std::process::id().to_string())) {
        let text = format!(
            "the source {} of the mount at {} is the runtime's own process, not the container's: mount /proc, or name a process",
            clean.display(),
            destination.display()
        );
        return Err(PodError::invalid(text));
    }
    Ok(real)
}

/// Private has to be said as well: what is bound is a slave of the node's mount.
fn propagation(wish: &cri::Mount, destination: &Path) -> wire::Propagation {
    let mode = match wish.propagation() {
        cri::MountPropagation::PropagationPrivate => "private",
        cri::MountPropagation::PropagationHostToContainer => "slave",
        cri::MountPropagation::PropagationBidirectional => "shared",
    };
    wire::Propagation { destination: destination.display().to_string(), mode: mode.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::tests::Fixture;

    fn wish(container_path: &str, host_path: &str) -> cri::Mount {
        cri::Mount { container_path: container_path.into(), host_path: host_path.into(), ..Default::default() }
    }

    fn destinations(mounts: &Mounts) -> Vec<String> {
        mounts.list.iter().map(|m| m.destination().display().to_string()).collect()
    }

    #[test]
    fn mounts_are_ordered_by_depth_and_the_requests_take_the_place_of_ours() {
        let mut fixture = Fixture::default();
        fixture.config.mounts =
            vec![wish("/data/a/b", "/tmp"), wish("/data", "/tmp"), wish("/etc/hosts", "/etc/hosts")];
        let mounts = resolve(&fixture.container()).expect("mounts");
        let list = destinations(&mounts);
        let at = |path: &str| list.iter().position(|d| d == path).expect("there");
        assert!(at("/data") < at("/data/a/b") && at("/dev") < at("/dev/shm") && at("/sys") < at("/sys/fs/cgroup"));
        assert_eq!(list.iter().filter(|d| *d == "/etc/hosts").count(), 1);
    }

    #[test]
    fn a_mount_over_dev_replaces_all_of_ours_below_it() {
        let mut fixture = Fixture::default();
        fixture.config.mounts = vec![wish("/dev", "/dev")];
        let list = destinations(&resolve(&fixture.container()).expect("mounts"));
        assert_eq!(list.iter().filter(|d| d.starts_with("/dev")).count(), 1, "{list:?}");
    }

    #[test]
    fn read_only_and_propagation_become_what_they_mean() {
        let mut fixture = Fixture::default();
        let mut slave = wish("/slave", "/tmp");
        slave.set_propagation(cri::MountPropagation::PropagationHostToContainer);
        let mut recursive = wish("/recursive", "/tmp");
        (recursive.readonly, recursive.recursive_read_only) = (true, true);
        fixture.config.mounts = vec![slave, recursive];
        let mounts = resolve(&fixture.container()).expect("mounts");
        assert_eq!(mounts.propagations[0].mode, "slave");
        assert_eq!(mounts.propagations[1].mode, "private");
        assert!(!mounts.is_shared());
        let found = mounts.list.iter().find(|m| m.destination() == Path::new("/recursive")).expect("there");
        assert_eq!(found.options().as_ref().expect("options"), &["rbind", "ro", "rro"]);
    }

    #[test]
    fn bad_mounts_are_refused_by_name() {
        let mut writable = wish("/data", "/tmp");
        writable.recursive_read_only = true;
        let through_a_file = wish("/data", "/etc/passwd/x");
        for bad in [
            wish("", "/tmp"),
            wish("/", "/tmp"),
            wish("/a/../..", "/tmp"),
            wish("/proc", "/tmp"),
            wish("//proc/./self/attr", "/tmp"),
            wish("proc/sys", "/tmp"),
            wish("/data", ""),
            wish("/data", "relative"),
            wish("/data", "/tmp/../etc"),
            wish("/data", "/proc/self"),
            wish("/data", "/proc/self/ns"),
            writable,
            through_a_file,
        ] {
            let mut fixture = Fixture::default();
            fixture.config.mounts = vec![bad.clone()];
            assert!(resolve(&fixture.container()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_missing_source_is_made_and_a_link_is_followed() {
        let dir = std::env::temp_dir().join(format!("cricket-mounts-{}", std::process::id()));
        let (missing, link) = (dir.join("missing/deep"), dir.join("link"));
        fs::create_dir_all(&dir).expect("a directory");
        std::os::unix::fs::symlink(&missing, &link).expect("a link");
        let made = source(missing.to_str().expect("a text"), Path::new("/x")).expect("a source");
        assert!(made.is_dir());
        assert_eq!(source(link.to_str().expect("a text"), Path::new("/x")).expect("a source"), made);
        fs::remove_dir_all(&dir).expect("removed");
    }
}
