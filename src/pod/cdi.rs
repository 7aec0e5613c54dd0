//! Devices by the Container Device Interface: specifications of the node's administrator, by default in /etc/cdi and
//! /var/run/cdi, say what a device named `VENDOR/CLASS=NAME` is made of. Only the request's own field asks for one,
//! never an annotation.
//!
//! Specifications are read anew for each container that asks, since who makes them (an operator, a driver) does so at
//! any time; what is in a later directory goes before an earlier one. They are read as an attacker's bytes all the
//! same: bounded, regular files only, and what is not understood is an error instead of a device that lacks something.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::pod::error::{PodError, quoted};
use crate::pod::paths;
use crate::pod::runtimes::check_hooks;
use crate::pod::spec::oci;
use crate::proto::cri;

/// Largest specification that is read.
const FILE_LIMIT_BYTES: u64 = 1 << 20;
/// Most files of one directory that are looked at.
const FILES_LIMIT: usize = 512;
/// Most devices of one request.
const DEVICES_LIMIT: usize = 256;
/// Major and minor versions whose fields are known.
const VERSIONS: (u32, std::ops::RangeInclusive<u32>) = (0, 3..=8);
const VERSION_ONE: u32 = 1;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Specification {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// What is changed in a container. Unknown fields are an error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Edits {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<DeviceNode>,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    hooks: Vec<Hook>,
    #[serde(default)]
    additional_gids: Vec<u32>,
}

/// Numbers, kind and owner are the node's own device's.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeviceNode {
    path: String,
    #[serde(default)]
    host_path: String,
    #[serde(default)]
    permissions: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mount {
    host_path: PathBuf,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default, rename = "type")]
    kind: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Hook {
    hook_name: String,
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<i64>,
}

/// What the devices of a request change in its specification.
#[derive(Debug, Default)]
pub(crate) struct Injection {
    edits: Vec<Edits>,
}

/// Looks the devices up: their nodes become devices of the request, the rest waits for the specification. Blocking.
pub(crate) fn resolve(
    directories: &[PathBuf],
    mut config: cri::ContainerConfig,
) -> Result<(cri::ContainerConfig, Injection), PodError> {
    let wishes = std::mem::take(&mut config.cdi_devices);
    if wishes.is_empty() {
        return Ok((config, Injection::default()));
    }
    if wishes.len() > DEVICES_LIMIT {
        return Err(PodError::invalid(format!("more than {DEVICES_LIMIT} CDI devices")));
    }
    let directories: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
    let injection = Injection { edits: look_up(&directories, wishes.iter().map(|wish| wish.name.as_str()))? };
    for node in injection.edits.iter().flat_map(|edits| &edits.device_nodes) {
        let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
        config.devices.push(cri::Device {
            host_path: host.clone(),
            container_path: node.path.clone(),
            permissions: node.permissions.clone(),
        });
    }
    Ok((config, injection))
}

/// Edits of a kind once, those of each device in the order of the request.
fn look_up<'a>(directories: &[&Path], names: impl Iterator<Item = &'a str>) -> Result<Vec<Edits>, PodError> {
    let mut found = Vec::new();
    let mut common: BTreeMap<PathBuf, ()> = BTreeMap::new();
    let files = list(directories);
    for name in names {
        let (kind, device) = parts(name)?;
        let (path, specification, at) = find(&files, kind, device)?.ok_or_else(|| {
            let places = directories.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(" and ");
            PodError::precondition(format!("there is no CDI device {:?} in {places}", quoted(name)))
        })?;
        check_version(&specification, &path)?;
        if common.insert(path, ()).is_none() {
            found.push(specification.container_edits.clone());
        }
        found.push(specification.devices[at].container_edits.clone());
    }
    Ok(found)
}

/// `VENDOR/CLASS` and the device's name.
fn parts(name: &str) -> Result<(&str, &str), PodError> {
    let wrong = || PodError::invalid(format!("{:?} is not the name of a CDI device: VENDOR/CLASS=NAME", quoted(name)));
    let (kind, device) = name.split_once('=').ok_or_else(wrong)?;
    let plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':'))
    };
    let (vendor, class) = kind.split_once('/').ok_or_else(wrong)?;
    if [vendor, class, device].into_iter().all(plain) { Ok((kind, device)) } else { Err(wrong()) }
}

/// Files of each directory, those that go before others first.
fn list(directories: &[&Path]) -> Vec<Vec<PathBuf>> {
    let of_directory = |directory: &&Path| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten().take(FILES_LIMIT);
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_known(path)).collect();
        files.sort();
        files
    };
    directories.iter().rev().map(of_directory).collect()
}

fn is_known(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json" || extension == "yaml")
}

type Found = (PathBuf, Specification, usize);

/// The one file that has the device. A file that cannot be understood hides no device of another.
fn find(files: &[Vec<PathBuf>], kind: &str, device: &str) -> Result<Option<Found>, PodError> {
    let mut fault = None;
    for of_directory in files {
        let mut found: Option<Found> = None;
        for path in of_directory {
            let specification = match read(path) {
                Ok(specification) => specification,
                Err(error) => {
                    tracing::warn!("{error}");
                    fault = fault.or(Some(error));
                    continue;
                }
            };
            let at = specification.devices.iter().position(|d| d.name == device);
            let Some(at) = at.filter(|_| specification.kind == kind) else { continue };
            if let Some((other, ..)) = &found {
                let (one, two) = (other.display(), path.display());
                return Err(PodError::precondition(format!("the CDI device {kind}={device} is in {one} and in {two}")));
            }
            found = Some((path.clone(), specification, at));
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    // The device may be in the one that was not understood.
    fault.map_or(Ok(None), Err)
}

fn read(path: &Path) -> Result<Specification, PodError> {
    let bytes = paths::read_on_node(path, FILE_LIMIT_BYTES)?;
    let wrong = |error: String| {
        PodError::precondition(format!("the CDI specification {} is not understood: {error}", path.display()))
    };
    if path.extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()));
    }
    serde_yaml_ng::from_slice(&bytes).map_err(|e| wrong(e.to_string()))
}

fn check_version(specification: &Specification, path: &Path) -> Result<(), PodError> {
    let text = specification.cdi_version.trim_start_matches('v');
    let mut numbers = text.split('.').map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if major == VERSIONS.0 && VERSIONS.1.contains(&minor) => Ok(()),
        (Some(VERSION_ONE), Some(_)) => Ok(()),
        _ => Err(PodError::precondition(format!(
            "the CDI specification {} is of version {:?}, which is not known",
            path.display(),
            quoted(&specification.cdi_version)
        ))),
    }
}

impl Injection {
    /// Adds what is not a device node.
    pub(crate) fn amend(&self, spec: &mut oci::Spec) -> Result<(), PodError> {
        for edits in &self.edits {
            amend_process(edits, spec);
            for mount in &edits.mounts {
                let mount = bind(mount)?;
                spec.mounts_mut().get_or_insert_default().push(mount);
            }
            for hook in &edits.hooks {
                add_hook(hook, spec)?;
            }
        }
        Ok(())
    }
}

fn amend_process(edits: &Edits, spec: &mut oci::Spec) {
    let Some(process) = spec.process_mut() else { return };
    let env = process.env_mut().get_or_insert_default();
    for variable in &edits.env {
        let name = variable.split('=').next().unwrap_or_default();
        env.retain(|known| known.split('=').next() != Some(name));
        env.push(variable.clone());
    }
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    let new: Vec<u32> =
        edits.additional_gids.iter().copied().filter(|gid| *gid != 0 && !groups.contains(gid)).collect();
    groups.extend(new);
    user.set_additional_gids(Some(groups));
    process.set_user(user);
}

fn bind(mount: &Mount) -> Result<oci::Mount, PodError> {
    if !mount.host_path.is_absolute() {
        let path = mount.host_path.display();
        return Err(PodError::precondition(format!("a CDI specification mounts {path}, which is not absolute")));
    }
    let mut options = mount.options.clone();
    let is_bind = mount.kind.is_empty() || mount.kind == "bind";
    if is_bind && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("rbind".to_owned());
    }
    let real = is_bind.then(|| std::fs::canonicalize(&mount.host_path).ok()).flatten();
    let mut made = oci::Mount::default();
    made.set_destination(paths::inside("the mount of a CDI device", &mount.container_path)?)
        // The supervisor follows no link of a bind. One that leads nowhere is its to tell.
        .set_source(Some(real.unwrap_or_else(|| mount.host_path.clone())))
        .set_typ(Some(if is_bind { "bind".to_owned() } else { mount.kind.clone() }))
        .set_options(Some(options));
    Ok(made)
}

fn add_hook(wish: &Hook, spec: &mut oci::Spec) -> Result<(), PodError> {
    let mut hook = oci::Hook::default();
    hook.set_path(wish.path.clone())
        .set_args(Some(wish.args.clone()).filter(|args| !args.is_empty()))
        .set_env(Some(wish.env.clone()).filter(|env| !env.is_empty()))
        .set_timeout(wish.timeout);
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let with = |list: &Option<Vec<oci::Hook>>| {
        let mut list = list.clone().unwrap_or_default();
        list.push(hook.clone());
        Some(list)
    };
    match wish.hook_name.as_str() {
        "prestart" => {
            let list = with(hooks.prestart());
            hooks.set_prestart(list);
        }
        "createRuntime" => {
            let list = with(hooks.create_runtime());
            hooks.set_create_runtime(list);
        }
        "createContainer" => {
            let list = with(hooks.create_container());
            hooks.set_create_container(list);
        }
        "startContainer" => {
            let list = with(hooks.start_container());
            hooks.set_start_container(list);
        }
        "poststart" => {
            let list = with(hooks.poststart());
            hooks.set_poststart(list);
        }
        "poststop" => {
            let list = with(hooks.poststop());
            hooks.set_poststop(list);
        }
        other => {
            return Err(PodError::precondition(format!(
                "a CDI specification has a hook {:?}: no such hook",
                quoted(other)
            )));
        }
    }
    check_hooks(&hooks)?;
    spec.set_hooks(Some(hooks));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
        "containerEdits": {"env": ["COMMON=1"]},
        "devices": [
            {"name": "one", "containerEdits": {
                "env": ["PATH=/gpu"], "additionalGids": [44, 0],
                "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "rw"}],
                "mounts": [{"hostPath": "/etc/hostname", "containerPath": "/gpu/name", "options": ["ro"]}],
                "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true", "x"]}]}},
            {"name": "two", "containerEdits": {"env": ["TWO=2"]}}]}"#;
    const YAML: &str = "cdiVersion: 0.5.0\nkind: other.org/net\ndevices:\n- name: eth\n  containerEdits:\n    deviceNodes:\n    - path: /dev/zero\n";

    fn place(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("cricket-cdi-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("made");
        for (file, text) in files {
            fs::write(dir.join(file), text).expect("written");
        }
        dir
    }

    #[test]
    fn devices_are_found_in_both_formats_and_common_edits_come_once() {
        let dir = place("both", &[("gpu.json", JSON), ("net.yaml", YAML), ("notes.txt", "no")]);
        let names = ["vendor.com/gpu=one", "vendor.com/gpu=two", "other.org/net=eth"];
        let edits = look_up(&[&dir], names.into_iter()).expect("found");
        let env: Vec<&str> = edits.iter().flat_map(|e| &e.env).map(String::as_str).collect();
        assert_eq!(env, ["COMMON=1", "PATH=/gpu", "TWO=2"]);
        assert_eq!(edits.iter().map(|e| e.device_nodes.len()).sum::<usize>(), 2);
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn edits_change_the_specification() {
        let dir = place("amend", &[("gpu.json", JSON)]);
        let injection = Injection { edits: look_up(&[&dir], ["vendor.com/gpu=one"].into_iter()).expect("found") };
        let mut process = oci::Process::default();
        process.set_env(Some(vec!["PATH=/bin".to_owned(), "A=b".to_owned()]));
        let mut spec = oci::Spec::default();
        spec.set_process(Some(process)).set_mounts(None);
        injection.amend(&mut spec).expect("amended");
        let process = spec.process().as_ref().expect("one");
        assert_eq!(process.env().as_ref().expect("some"), &["A=b", "COMMON=1", "PATH=/gpu"]);
        assert_eq!(process.user().additional_gids().as_ref().expect("some"), &[44]);
        let mount = &spec.mounts().as_ref().expect("some")[0];
        assert_eq!((mount.destination().as_path(), mount.typ().as_deref()), (Path::new("/gpu/name"), Some("bind")));
        assert_eq!(mount.options().as_ref().expect("some"), &["ro", "rbind"]);
        let hooks = spec.hooks().as_ref().expect("some");
        assert_eq!(hooks.create_container().as_ref().map(Vec::len), Some(1));
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn what_is_not_there_not_named_right_or_not_understood_is_an_error() {
        let unknown = JSON.replace("additionalGids", "netDevices");
        let late = JSON.replace("poststop", "").replace("createContainer", "poststop");
        let dir = place("wrong", &[("gpu.json", JSON)]);
        for name in ["vendor.com/gpu=three", "vendor.com/gpu", "../x=y", "vendor.com/=one", ""] {
            assert!(look_up(&[&dir], [name].into_iter()).is_err(), "{name}");
        }
        for text in [unknown.as_str(), "{", &JSON.replace("0.6.0", "9.0.0")] {
            fs::write(dir.join("gpu.json"), text).expect("written");
            assert!(look_up(&[&dir], ["vendor.com/gpu=one"].into_iter()).is_err(), "{text}");
        }
        fs::write(dir.join("gpu.json"), late).expect("written");
        let injection = Injection { edits: look_up(&[&dir], ["vendor.com/gpu=one"].into_iter()).expect("found") };
        assert!(injection.amend(&mut oci::Spec::default()).is_err(), "nobody runs poststop hooks");
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn the_second_directory_goes_before_the_first_and_one_file_alone_has_a_device() {
        let (first, second) = (place("first", &[("a.json", JSON)]), place("second", &[("a.json", JSON)]));
        fs::write(second.join("a.json"), JSON.replace("TWO=2", "TWO=3")).expect("written");
        let edits = look_up(&[&first, &second], ["vendor.com/gpu=two"].into_iter()).expect("found");
        assert_eq!(edits[1].env, ["TWO=3"]);
        fs::write(first.join("b.json"), JSON).expect("written");
        assert!(look_up(&[&first], ["vendor.com/gpu=two"].into_iter()).is_err(), "ambiguous");
        for dir in [first, second] {
            fs::remove_dir_all(dir).expect("removed");
        }
    }
}
