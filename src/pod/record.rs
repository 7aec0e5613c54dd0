//! The records of pods and containers on disk.
//!
//! ```text
//! ROOT/pods/ID/pod.json                        PodRecord: written when the pod is up, again when it is stopped
//! ROOT/pods/ID/answered                        empty: the answer to RunPodSandbox reached its caller
//! ROOT/pods/ID/containers/CID/container.json   ContainerRecord: written when the container is made
//! ROOT/pods/ID/containers/CID/answered         empty: the answer to CreateContainer reached its caller
//! ROOT/pods/ID/containers/CID/started          empty: the answer to StartContainer reached its caller
//! ROOT/pods/ID/containers/CID/exit.json        written by the supervisor (proto ContainerExit)
//! ROOT/unreadable/ID                           directories whose record could not be understood, set aside
//! STATE/pods/ID/                               sockets, the pod's own files; gone after a reboot
//! STATE/pods/ID/containers/CID/config.json     the bundle
//! STATE/seccomp/                               compiled filters: the supervisors'
//! ```
//!
//! A directory without its record is something half made: it is removed at start.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::network::PodNetwork;
use crate::proto::{cri, supervisor as wire};
use crate::store::{self, ContainerId, PodId, RecordError};

/// Layout that this release writes; an older one is read, a newer one is set aside.
pub(crate) const VERSION: u32 = 1;

/// A pod that is up or was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) version: u32,
    pub(crate) id: PodId,
    /// As the client sent it.
    pub(crate) config: cri::PodSandboxConfig,
    pub(crate) handler: String,
    /// Nanoseconds since the Unix epoch.
    pub(crate) created_at: i64,
    /// Stopped for good, by request or because its supervisor went.
    pub(crate) stopped: bool,
    /// Of the supervisor, in the node's PID namespace; `executor::leftovers` knows more of it.
    pub(crate) pid: i32,
    /// Of the boot in which it was started.
    pub(crate) boot_id: String,
    /// Absolute, from the cgroup file system's root; none where there are no cgroups for us.
    pub(crate) cgroup: Option<PathBuf>,
    /// None: it is on the node's network, or an earlier release made it.
    #[serde(default)]
    pub(crate) network: Option<PodNetwork>,
}

/// A container that is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) version: u32,
    pub(crate) id: ContainerId,
    pub(crate) pod: PodId,
    /// As the client sent it.
    pub(crate) config: cri::ContainerConfig,
    /// Nanoseconds since the Unix epoch.
    pub(crate) created_at: i64,
    /// Digest of the image's config.
    pub(crate) image_id: String,
    /// Its name when the container was made; never empty.
    pub(crate) image_name: String,
    /// Absolute; empty: no log.
    pub(crate) log_path: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) stop_signal: i32,
    /// Of its first process, in the node's PID namespace.
    pub(crate) pid: i32,
    /// Absolute, from the cgroup file system's root.
    pub(crate) cgroup: PathBuf,
    pub(crate) not_enforced: Vec<String>,
    /// Limits that are about to be in force; see `update.rs`. An earlier release knew none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pending: Option<cri::LinuxContainerResources>,
}

/// Where everything of the domain lies.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pods: PathBuf,
    state: PathBuf,
    /// Compiled seccomp filters.
    filters: PathBuf,
    unreadable: PathBuf,
}

impl Layout {
    /// Below the configured directories.
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            pods: config.root.join("pods"),
            state: config.state.join("pods"),
            unreadable: config.root.join("unreadable"),
            filters: config.state.join("seccomp"),
        }
    }

    /// Directories of all pods: on disk, at run time, set aside.
    pub(crate) fn roots(&self) -> [&Path; 3] {
        [&self.pods, &self.state, &self.unreadable]
    }

    /// Where supervisors keep compiled seccomp filters.
    pub(crate) fn seccomp_store(&self) -> &Path {
        &self.filters
    }

    /// A pod's directory on disk.
    pub(crate) fn pod(&self, pod: &PodId) -> PathBuf {
        self.pods.join(pod.as_str())
    }

    /// A pod's directory at run time.
    pub(crate) fn pod_state(&self, pod: &PodId) -> PathBuf {
        self.state.join(pod.as_str())
    }

    /// A container's directory on disk.
    pub(crate) fn container(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.pod(pod).join("containers").join(container.as_str())
    }

    /// A container's bundle.
    pub(crate) fn bundle(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.pod_state(pod).join("containers").join(container.as_str())
    }

    /// See the module.
    pub(crate) fn pod_record(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("pod.json")
    }

    /// See the module.
    pub(crate) fn container_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container(pod, container).join("container.json")
    }

    /// Written by the supervisor.
    pub(crate) fn exit_record(&self, pod: &PodId, container: &ContainerId) -> Option<wire::ContainerExit> {
        let path = self.container(pod, container).join("exit.json");
        let error = match read(&path) {
            Ok(exit) => return exit,
            Err(error) => error,
        };
        if !error.is_damaged() {
            tracing::error!(%container, %error, "how a container ended cannot be read now");
            return None;
        }
        let place = store::set_aside(&path).map_or_else(|e| e.to_string(), |place| place.display().to_string());
        tracing::error!(%container, %error, place, "how a container ended is not known: its record is set aside");
        None
    }

    /// Moves a pod's directory out of the way, with what could not be understood in it.
    pub(crate) fn set_aside(&self, pod: &PodId) -> std::io::Result<PathBuf> {
        std::fs::create_dir_all(&self.unreadable)?;
        let place = self.unreadable.join(pod.as_str());
        std::fs::rename(self.pod(pod), &place)?;
        Ok(place)
    }
}

/// Reads a record of this release's layout or an earlier one; `None`: there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    match store::read_known(path, VERSION) {
        Ok(record) => Ok(Some(record)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_record_is_not_read_as_if_it_were_ours() {
        let path = std::env::temp_dir().join(format!("cricket-newer-{}.json", std::process::id()));
        let mut record = PodRecord {
            version: VERSION,
            id: PodId::random(),
            config: cri::PodSandboxConfig::default(),
            handler: String::new(),
            created_at: 1,
            stopped: false,
            pid: 1,
            boot_id: "x".into(),
            cgroup: None,
            network: None,
        };
        store::write(&path, &record).expect("written");
        assert_eq!(read::<PodRecord>(&path).expect("read"), Some(record.clone()));
        record.version += 1;
        store::write(&path, &record).expect("written");
        assert!(read::<PodRecord>(&path).is_err());
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(read::<PodRecord>(&path).expect("read"), None);
    }

    #[test]
    fn records_of_earlier_releases_are_read() {
        for path in store::of_earlier_releases("pod.json") {
            let record: PodRecord = read(&path).expect("read").expect("there");
            assert!(record.network.is_some() && record.config.metadata.is_some(), "{record:?}");
        }
        for path in store::of_earlier_releases("container.json") {
            let record: ContainerRecord = read(&path).expect("read").expect("there");
            assert!(record.pending.is_none() && record.config.metadata.is_some(), "{record:?}");
        }
        for path in store::of_earlier_releases("exit.json") {
            let exit: wire::ContainerExit = read(&path).expect("read").expect("there");
            assert_eq!((exit.exit_code, exit.reason.as_str()), (143, "Error"));
        }
    }
}
