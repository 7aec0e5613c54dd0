//! Devices of the node that a container sees: those the request names, or all of them for a privileged one.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::pod::error::PodError;
use crate::pod::paths;
use crate::pod::spec::oci;
use crate::proto::cri;

/// Most devices of one container.
const DEVICE_LIMIT: usize = 4096;
/// Deepest directory below /dev that is looked into.
const DEPTH_LIMIT: usize = 6;
/// Below /dev, but the container's own.
const OWN: [&str; 7] = ["pts", "shm", "mqueue", "console", "fd", "ptmx", "core"];

/// What the specification says of them.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    /// At the same path inside; libcontainer makes or binds them.
    pub(crate) nodes: Vec<oci::LinuxDevice>,
    /// At another path inside, which libcontainer cannot do.
    pub(crate) binds: Vec<oci::Mount>,
}

/// Of a request.
pub(crate) fn resolve(config: &cri::ContainerConfig, privileged: bool) -> Result<Devices, PodError> {
    let mut devices = Devices::default();
    if privileged {
        collect(Path::new("/dev"), 0, &mut devices.nodes);
    }
    for wish in &config.devices {
        add(wish, &mut devices)?;
    }
    match devices.nodes.len() + devices.binds.len() > DEVICE_LIMIT {
        true => Err(PodError::invalid(format!("more than {DEVICE_LIMIT} devices"))),
        false => Ok(devices),
    }
}

fn add(wish: &cri::Device, devices: &mut Devices) -> Result<(), PodError> {
    let outside = paths::on_node("the device", &wish.host_path)?;
    let inside = match wish.container_path.as_str() {
        "" => outside.clone(),
        path => paths::inside("the device's path in the container", path)?,
    };
    if !wish.permissions.bytes().all(|b| b"rwm".contains(&b)) {
        return Err(PodError::invalid(format!(
            "the device {} has odd permissions: r, w and m are known",
            outside.display()
        )));
    }
    if outside.is_dir() {
        let mut list = Vec::new();
        collect(&outside, 0, &mut list);
        for found in list {
            let name = found.path().strip_prefix(&outside).expect("found below it").to_owned();
            place(found, &inside.join(name), devices);
        }
        return Ok(());
    }
    let found = node(&outside)
        .ok_or_else(|| PodError::precondition(format!("{} is no device of this node", outside.display())))?;
    place(found, &inside, devices);
    Ok(())
}

fn place(found: oci::LinuxDevice, inside: &Path, devices: &mut Devices) {
    if found.path() == inside {
        devices.nodes.retain(|known| known.path() != inside);
        devices.nodes.push(found);
        return;
    }
    // The supervisor follows no link. One that is gone since is its to tell.
    let source = std::fs::canonicalize(found.path()).unwrap_or_else(|_| found.path().clone());
    let mut bind = oci::Mount::default();
    bind.set_destination(inside.to_owned())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(source))
        .set_options(Some(["bind", "nosuid", "noexec"].map(str::to_owned).into()));
    devices.binds.push(bind);
}

fn node(path: &Path) -> Option<oci::LinuxDevice> {
    let metadata = fs::metadata(path).ok()?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => oci::LinuxDeviceType::C,
        kind if kind.is_block_device() => oci::LinuxDeviceType::B,
        _ => return None,
    };
    let mut device = oci::LinuxDevice::default();
    device
        .set_path(path.to_owned())
        .set_typ(kind)
        .set_major(i64::from(rustix::fs::major(metadata.rdev())))
        .set_minor(i64::from(rustix::fs::minor(metadata.rdev())))
        .set_file_mode(Some(metadata.mode() & 0o777))
        .set_uid(Some(metadata.uid()))
        .set_gid(Some(metadata.gid()));
    Some(device)
}

fn collect(directory: &Path, depth: usize, list: &mut Vec<oci::LinuxDevice>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path: PathBuf = entry.path();
        let own = depth == 0 && OWN.iter().any(|name| entry.file_name() == *name);
        let Ok(kind) = entry.file_type() else { continue };
        if own || list.len() >= DEVICE_LIMIT {
            continue;
        }
        if kind.is_dir() && depth < DEPTH_LIMIT {
            collect(&path, depth + 1, list);
        } else if !kind.is_symlink() {
            list.extend(node(&path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(host: &str, container: &str, permissions: &str) -> cri::ContainerConfig {
        let device =
            cri::Device { host_path: host.into(), container_path: container.into(), permissions: permissions.into() };
        cri::ContainerConfig { devices: vec![device], ..Default::default() }
    }

    #[test]
    fn a_device_elsewhere_is_bound_and_one_in_place_is_a_node() {
        let here = resolve(&request("/dev/null", "/dev/null", "rwm"), false).expect("devices");
        assert_eq!((here.nodes.len(), here.binds.len()), (1, 0));
        assert_eq!((here.nodes[0].major(), here.nodes[0].minor()), (1, 3));
        let there = resolve(&request("/dev/null", "/dev/nothing", "r"), false).expect("devices");
        assert_eq!((there.nodes.len(), there.binds.len()), (0, 1));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for (host, container, permissions) in
            [("/etc/passwd", "/dev/x", "rwm"), ("/dev/missing", "", "rwm"), ("", "", ""), ("/dev/null", "", "rwx")]
        {
            assert!(resolve(&request(host, container, permissions), false).is_err(), "{host}");
        }
    }

    #[test]
    fn a_privileged_container_sees_the_nodes_devices_but_not_its_terminals() {
        let all = resolve(&cri::ContainerConfig::default(), true).expect("devices");
        assert!(all.nodes.iter().any(|d| d.path() == Path::new("/dev/null")));
        assert!(!all.nodes.iter().any(|d| d.path().starts_with("/dev/pts")));
    }
}
