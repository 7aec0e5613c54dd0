//! What was typed, as CRI's requests.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::{Args, port, volume};
use crate::proto::cri;
use crate::proto::cri::security_profile::ProfileType;
use crate::store::PodId;

/// The container's log below its pod's directory.
pub const LOG_FILE: &str = "container.log";

/// Pods of the command line live here, apart from those of a kubelet.
pub const NAMESPACE: &str = "cricket";

/// Longest name: a label of DNS, because it becomes the host name.
const NAME_LIMIT: usize = 63;

/// Random digits that make a default name unique.
const RANDOM_DIGITS: usize = 5;

/// Which network a pod has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// One of its own.
    #[default]
    Pod,
    /// The node's.
    Node,
}

/// All that is asked for, checked.
#[derive(Debug)]
pub struct Plan {
    name: String,
    uid: String,
    image: String,
    entrypoint: Vec<String>,
    command: Vec<String>,
    envs: Vec<cri::KeyValue>,
    mounts: Vec<cri::Mount>,
    ports: Vec<cri::PortMapping>,
    workdir: String,
    user: User,
    network: Network,
    read_only: bool,
    /// Input goes to the container.
    pub interactive: bool,
    /// It has a terminal.
    pub tty: bool,
}

/// Who it runs as; what is not said is the image's.
#[derive(Debug, Default, PartialEq, Eq)]
struct User {
    id: Option<i64>,
    name: String,
    group: Option<i64>,
}

impl Plan {
    /// Understands what was typed.
    pub fn new(args: &Args) -> anyhow::Result<Self> {
        let uid = PodId::random();
        let name = match &args.name {
            Some(name) => checked_name(name)?,
            None => default_name(&args.image, &uid.as_str()[..RANDOM_DIGITS]),
        };
        let mut envs = args.env.iter().map(|text| variable(text)).collect::<anyhow::Result<Vec<_>>>()?;
        if args.tty && !envs.iter().any(|env| env.key == "TERM") {
            envs.insert(0, cri::KeyValue { key: "TERM".to_owned(), value: b"xterm".to_vec() });
        }
        Ok(Self {
            name,
            uid: uid.to_string(),
            image: args.image.clone(),
            entrypoint: args.entrypoint.iter().cloned().collect(),
            command: args.command.clone(),
            envs,
            mounts: args.volume.iter().map(|text| volume::mount(text)).collect::<anyhow::Result<_>>()?,
            ports: ports(args)?,
            workdir: args.workdir.clone().unwrap_or_default(),
            user: args.user.as_deref().map(user).transpose()?.unwrap_or_default(),
            network: args.network,
            read_only: args.read_only,
            interactive: args.interactive,
            tty: args.tty,
        })
    }

    /// Below the directory for logs of pods that no kubelet made.
    pub fn log_directory(&self, logs: &Path) -> PathBuf {
        logs.join(format!("{}_{}", self.name, self.uid))
    }

    /// The pod.
    pub fn sandbox(&self, log_directory: &Path) -> cri::PodSandboxConfig {
        let security_context = cri::LinuxSandboxSecurityContext {
            namespace_options: Some(self.namespaces()),
            seccomp: Some(default_seccomp()),
            ..Default::default()
        };
        let linux = cri::LinuxPodSandboxConfig { security_context: Some(security_context), ..Default::default() };
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid.clone(),
                namespace: NAMESPACE.to_owned(),
                attempt: 0,
            }),
            // A pod on the node's network has the node's name.
            hostname: if self.network == Network::Pod { self.name.clone() } else { String::new() },
            log_directory: log_directory.display().to_string(),
            port_mappings: self.ports.clone(),
            linux: Some(linux),
            ..Default::default()
        }
    }

    /// Its container.
    pub fn container(&self) -> cri::ContainerConfig {
        let integer = |value: Option<i64>| value.map(|value| cri::Int64Value { value });
        let security_context = cri::LinuxContainerSecurityContext {
            namespace_options: Some(self.namespaces()),
            run_as_user: integer(self.user.id),
            run_as_username: self.user.name.clone(),
            run_as_group: integer(self.user.group),
            readonly_rootfs: self.read_only,
            seccomp: Some(default_seccomp()),
            ..Default::default()
        };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: self.name.clone(), attempt: 0 }),
            image: Some(cri::ImageSpec {
                image: self.image.clone(),
                user_specified_image: self.image.clone(),
                annotations: HashMap::new(),
                ..Default::default()
            }),
            command: self.entrypoint.clone(),
            args: self.command.clone(),
            working_dir: self.workdir.clone(),
            envs: self.envs.clone(),
            mounts: self.mounts.clone(),
            log_path: LOG_FILE.to_owned(),
            stdin: self.interactive,
            stdin_once: self.interactive,
            tty: self.tty,
            linux: Some(cri::LinuxContainerConfig { security_context: Some(security_context), ..Default::default() }),
            ..Default::default()
        }
    }

    fn namespaces(&self) -> cri::NamespaceOption {
        let network = match self.network {
            Network::Pod => cri::NamespaceMode::Pod,
            Network::Node => cri::NamespaceMode::Node,
        };
        cri::NamespaceOption {
            network: network.into(),
            pid: cri::NamespaceMode::Container.into(),
            ipc: cri::NamespaceMode::Pod.into(),
            ..Default::default()
        }
    }
}

fn ports(args: &Args) -> anyhow::Result<Vec<cri::PortMapping>> {
    if args.network == Network::Node && !args.publish.is_empty() {
        bail!("--publish: a pod on the node's network has its ports there already; leave --network out");
    }
    args.publish.iter().map(|text| port::mapping(text)).collect()
}

fn default_seccomp() -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() }
}

fn checked_name(name: &str) -> anyhow::Result<String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edges = !name.starts_with('-') && !name.ends_with('-');
    if name.is_empty() || name.len() > NAME_LIMIT || !name.bytes().all(fits) || !edges {
        bail!("--name {name:?}: up to {NAME_LIMIT} lower-case letters, digits and dashes are expected");
    }
    Ok(name.to_owned())
}

/// `busybox-1f3c9` for `registry.example/library/busybox:1.36`.
fn default_name(image: &str, random: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    let last = last.split(['@', ':']).next().unwrap_or_default().to_ascii_lowercase();
    let letters: String = last.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let stem: String = letters.trim_matches('-').chars().take(NAME_LIMIT - RANDOM_DIGITS - 1).collect();
    if stem.is_empty() { format!("pod-{random}") } else { format!("{}-{random}", stem.trim_end_matches('-')) }
}

fn variable(text: &str) -> anyhow::Result<cri::KeyValue> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.as_bytes().to_vec()),
        None => match std::env::var_os(text) {
            Some(value) => (text, std::os::unix::ffi::OsStringExt::into_vec(value)),
            None => bail!("--env {text}: it is not set here; give it a value: {text}=..."),
        },
    };
    if key.is_empty() {
        bail!("--env {text:?}: NAME=VALUE is expected");
    }
    Ok(cri::KeyValue { key: key.to_owned(), value })
}

fn user(text: &str) -> anyhow::Result<User> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let group = match group.map(str::parse::<i64>) {
        None => None,
        Some(Ok(group)) if group >= 0 => Some(group),
        Some(_) => bail!("--user {text:?}: the group must be a number"),
    };
    match user.parse::<i64>() {
        Ok(id) if id >= 0 => Ok(User { id: Some(id), name: String::new(), group }),
        Err(_) if !user.is_empty() => Ok(User { id: None, name: user.to_owned(), group }),
        _ => bail!("--user {text:?}: USER or USER:GROUP is expected"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_after_its_image() {
        let cases = [
            ("busybox", "busybox-12345"),
            ("r.example:5000/library/busybox:1.36", "busybox-12345"),
            ("r.example/My_App@sha256:00", "my-app-12345"),
            ("___", "pod-12345"),
        ];
        for (image, expected) in cases {
            assert_eq!(default_name(image, "12345"), expected);
        }
        let long = default_name(&"x".repeat(200), "12345");
        assert!(checked_name(&long).is_ok(), "{long}");
    }

    #[test]
    fn names_are_labels_of_dns() {
        for bad in ["", "A", "a_b", "-a", "a-", &"a".repeat(64)] {
            assert!(checked_name(bad).is_err(), "{bad:?}");
        }
        assert!(checked_name("web-1").is_ok());
    }

    #[test]
    fn users_are_numbers_or_names() {
        let numbers = User { id: Some(1000), name: String::new(), group: Some(7) };
        assert_eq!(user("1000:7").expect("understood"), numbers);
        assert_eq!(user("www-data").expect("understood").name, "www-data");
        for bad in ["", ":7", "1:x", "-1", "1:-1"] {
            assert!(user(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn variables_have_a_name() {
        assert_eq!(variable("A=b=c").expect("understood").value, b"b=c");
        assert_eq!(variable("A=").expect("understood").value, b"");
        assert!(variable("=b").is_err());
        assert!(variable("CRICKET_NOT_SET_ANYWHERE").is_err());
    }
}
