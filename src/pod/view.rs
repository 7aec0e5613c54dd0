//! How pods and containers look to clients: published by each pod's task, read by lists and statuses from memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::executor::client::Supervisor;
use crate::pod::queue::Phase;
use crate::pod::record::{ContainerRecord, PodRecord};
use crate::pod::signal;
use crate::proto::{cri, lists, supervisor as wire};
use crate::store::ContainerId;

/// A pod at one moment.
#[derive(Clone)]
pub(crate) struct PodView {
    pub(crate) record: Arc<PodRecord>,
    pub(crate) ready: bool,
    /// None: it is gone.
    pub(crate) supervisor: Option<Supervisor>,
    pub(crate) containers: BTreeMap<ContainerId, Arc<ContainerView>>,
    pub(crate) listed: Listed,
}

/// A container at one moment.
#[derive(Debug, Clone)]
pub(crate) struct ContainerView {
    pub(crate) record: Arc<ContainerRecord>,
    pub(crate) phase: Phase,
    pub(crate) started_at: i64,
    pub(crate) exit: Option<Arc<wire::ContainerExit>>,
    /// Why its log cannot be written; empty: it can.
    pub(crate) log_trouble: String,
    pub(crate) listed: Listed,
}

/// A view's item of a list, encoded when the first list asks for it. A view never changes, so this never gets old.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listed(OnceLock<Bytes>);

impl PodView {
    fn state(&self) -> cri::PodSandboxState {
        if self.ready { cri::PodSandboxState::SandboxReady } else { cri::PodSandboxState::SandboxNotready }
    }

    /// For lists.
    pub(crate) fn item(&self) -> cri::PodSandbox {
        let config = &self.record.config;
        cri::PodSandbox {
            id: self.record.id.to_string(),
            metadata: config.metadata.clone(),
            state: self.state().into(),
            created_at: self.record.created_at,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: self.record.handler.clone(),
        }
    }

    /// The same as bytes.
    pub(crate) fn listed(&self) -> &Bytes {
        self.listed.0.get_or_init(|| lists::encode(&self.item()))
    }

    /// For PodSandboxStatus and events.
    pub(crate) fn status(&self) -> cri::PodSandboxStatus {
        let config = &self.record.config;
        let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = security.and_then(|s| s.namespace_options.clone()).unwrap_or_default();
        cri::PodSandboxStatus {
            id: self.record.id.to_string(),
            metadata: config.metadata.clone(),
            state: self.state().into(),
            created_at: self.record.created_at,
            network: Some(self.network()),
            linux: Some(cri::LinuxPodSandboxStatus { namespaces: Some(cri::Namespace { options: Some(options) }) }),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: self.record.handler.clone(),
        }
    }

    /// Empty on the node's network, and once the addresses may be another pod's.
    fn network(&self) -> cri::PodSandboxNetworkStatus {
        let network = self.record.network.as_ref().filter(|_| self.ready);
        let mut addresses = network.into_iter().flat_map(|n| &n.addresses).map(ToString::to_string);
        cri::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| cri::PodIp { ip }).collect(),
        }
    }

    /// Of all its containers.
    pub(crate) fn container_statuses(&self) -> Vec<cri::ContainerStatus> {
        self.containers.values().map(|c| c.status()).collect()
    }

    /// For verbose answers.
    pub(crate) fn info(&self) -> HashMap<String, String> {
        let info = serde_json::json!({
            "pid": self.record.pid,
            "cgroup": self.record.cgroup,
            "runtimeHandler": self.record.handler,
            "config": self.record.config,
        });
        [("info".to_owned(), info.to_string())].into()
    }

    /// Whether a list asks for it.
    pub(crate) fn matches(&self, filter: &cri::PodSandboxFilter) -> bool {
        let state = filter.state.as_ref().is_none_or(|s| s.state == i32::from(self.state()));
        state
            && self.record.id.as_str().starts_with(&filter.id)
            && has(&self.record.config.labels, &filter.label_selector)
    }
}

impl ContainerView {
    fn state(&self) -> cri::ContainerState {
        match self.phase {
            Phase::Created => cri::ContainerState::ContainerCreated,
            Phase::Running => cri::ContainerState::ContainerRunning,
            Phase::Exited => cri::ContainerState::ContainerExited,
        }
    }

    /// For lists.
    pub(crate) fn item(&self) -> cri::Container {
        let config = &self.record.config;
        cri::Container {
            id: self.record.id.to_string(),
            pod_sandbox_id: self.record.pod.to_string(),
            metadata: config.metadata.clone(),
            image: config.image.clone(),
            image_ref: self.record.image_id.clone(),
            state: self.state().into(),
            created_at: self.record.created_at,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            image_id: self.record.image_id.clone(),
        }
    }

    /// The same as bytes.
    pub(crate) fn listed(&self) -> &Bytes {
        self.listed.0.get_or_init(|| lists::encode(&self.item()))
    }

    /// For ContainerStatus and events.
    pub(crate) fn status(&self) -> cri::ContainerStatus {
        let (record, config) = (&self.record, &self.record.config);
        let none = wire::ContainerExit::default();
        let exit = self.exit.as_deref().unwrap_or(&none);
        let resources = config.linux.as_ref().and_then(|l| l.resources.clone());
        let image = cri::ImageSpec { image: record.image_name.clone(), ..config.image.clone().unwrap_or_default() };
        let user = cri::LinuxContainerUser {
            uid: record.uid.into(),
            gid: record.gid.into(),
            supplemental_groups: record.groups.iter().map(|g| i64::from(*g)).collect(),
        };
        let trouble = if self.log_trouble.is_empty() { &exit.message } else { &self.log_trouble };
        cri::ContainerStatus {
            id: record.id.to_string(),
            metadata: config.metadata.clone(),
            state: self.state().into(),
            created_at: record.created_at,
            started_at: self.started_at,
            finished_at: exit.finished_at,
            exit_code: exit.exit_code,
            image: Some(image),
            image_ref: record.image_id.clone(),
            reason: exit.reason.clone(),
            message: trouble.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: record.log_path.clone(),
            resources: Some(cri::ContainerResources { linux: resources, windows: None }),
            image_id: record.image_id.clone(),
            user: Some(cri::ContainerUser { linux: Some(user) }),
            stop_signal: signal::name(record.stop_signal).into(),
        }
    }

    /// For verbose answers.
    pub(crate) fn info(&self) -> HashMap<String, String> {
        let info = serde_json::json!({
            "sandboxID": self.record.pod,
            "pid": if self.phase == Phase::Exited { 0 } else { self.record.pid },
            "cgroup": self.record.cgroup,
            "notEnforced": self.record.not_enforced,
            "config": self.record.config,
        });
        [("info".to_owned(), info.to_string())].into()
    }

    /// Whether a list asks for it.
    pub(crate) fn matches(&self, filter: &cri::ContainerFilter) -> bool {
        filter.state.as_ref().is_none_or(|s| s.state == i32::from(self.state()))
            && self.record.id.as_str().starts_with(&filter.id)
            && self.record.pod.as_str().starts_with(&filter.pod_sandbox_id)
            && has(&self.record.config.labels, &filter.label_selector)
    }
}

/// Whether all of `selector` is in `labels`.
pub(crate) fn has(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_matches_when_all_of_it_is_there() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let labels = map(&[("a", "1"), ("b", "2")]);
        for (selector, expected) in
            [(map(&[]), true), (map(&[("a", "1")]), true), (map(&[("a", "2")]), false), (map(&[("c", "")]), false)]
        {
            assert_eq!(has(&labels, &selector), expected, "{selector:?}");
        }
    }
}
