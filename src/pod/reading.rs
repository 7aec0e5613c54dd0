//! What the domain tells without changing anything: statuses and lists from the views that pods' tasks publish,
//! statistics from the kernel, and what there is to ask for.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::sync::broadcast;

use crate::pod::error::PodError;
use crate::pod::{Pods, events, host_ports, stats, user_namespace, view};
use crate::proto::{cri, lists};

impl Pods {
    /// With the statuses of its containers; `info` only if verbose.
    pub fn pod_sandbox_status(&self, id: &str, verbose: bool) -> Result<cri::PodSandboxStatusResponse, PodError> {
        let (_, view) = self.context.table.pod(id)?;
        Ok(cri::PodSandboxStatusResponse {
            status: Some(view.status()),
            info: if verbose { view.info() } else { HashMap::new() },
            containers_statuses: view.container_statuses(),
            timestamp: events::now(),
        })
    }

    /// From memory, as an answer's bytes.
    pub fn encoded_pod_sandboxes(&self, filter: Option<&cri::PodSandboxFilter>) -> Bytes {
        let views = self.context.table.views();
        lists::concatenate(views.iter().filter(|view| filter.is_none_or(|f| view.matches(f))).map(|view| view.listed()))
    }

    /// From memory.
    pub fn list_pod_sandbox(&self, filter: Option<&cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
        let views = self.context.table.views();
        views.iter().filter(|view| filter.is_none_or(|f| view.matches(f))).map(|view| view.item()).collect()
    }

    /// Of pods that are up and have some: the id, and each port as `8080->80/tcp`.
    pub fn host_ports(&self) -> Vec<(String, Vec<String>)> {
        let views = self.context.table.views();
        let up = views.iter().filter(|view| view.ready);
        let ports = up.map(|view| (view.record.id.to_string(), host_ports::listed(&view.record.config)));
        ports.filter(|(_, ports)| !ports.is_empty()).collect()
    }

    /// `info` only if verbose.
    pub fn container_status(&self, id: &str, verbose: bool) -> Result<cri::ContainerStatusResponse, PodError> {
        let (_, _, container) = self.context.table.container(id)?;
        let info = if verbose { container.info() } else { HashMap::new() };
        Ok(cri::ContainerStatusResponse { status: Some(container.status()), info })
    }

    /// From memory, as an answer's bytes.
    pub fn encoded_containers(&self, filter: Option<&cri::ContainerFilter>) -> Bytes {
        let views = self.context.table.views();
        let containers = views.iter().flat_map(|view| view.containers.values());
        lists::concatenate(containers.filter(|c| filter.is_none_or(|f| c.matches(f))).map(|c| c.listed()))
    }

    /// From memory.
    pub fn list_containers(&self, filter: Option<&cri::ContainerFilter>) -> Vec<cri::Container> {
        let views = self.context.table.views();
        let containers = views.iter().flat_map(|view| view.containers.values());
        containers.filter(|c| filter.is_none_or(|f| c.matches(f))).map(|c| c.item()).collect()
    }

    /// What a container uses now.
    pub async fn container_stats(&self, id: &str) -> Result<cri::ContainerStats, PodError> {
        let (_, view, container) = self.context.table.container(id)?;
        stats::of_container(&self.context, view, container).await
    }

    /// Of containers that have not exited.
    pub async fn list_container_stats(
        &self,
        filter: Option<&cri::ContainerStatsFilter>,
    ) -> Result<Vec<cri::ContainerStats>, PodError> {
        let filter = filter.map(|f| cri::ContainerFilter {
            id: f.id.clone(),
            pod_sandbox_id: f.pod_sandbox_id.clone(),
            label_selector: f.label_selector.clone(),
            state: None,
        });
        let wanted = |container: &view::ContainerView| filter.as_ref().is_none_or(|f| container.matches(f));
        stats::of_containers(&self.context, self.context.table.views(), wanted).await
    }

    /// What a pod uses now, with its containers.
    pub async fn pod_sandbox_stats(&self, id: &str) -> Result<cri::PodSandboxStats, PodError> {
        let (_, view) = self.context.table.pod(id)?;
        let stats = stats::of_pods(&self.context, vec![view]).await?;
        stats.into_iter().next().ok_or_else(|| PodError::internal("a pod's statistics were lost"))
    }

    /// Of pods that are ready.
    pub async fn list_pod_sandbox_stats(
        &self,
        filter: Option<&cri::PodSandboxStatsFilter>,
    ) -> Result<Vec<cri::PodSandboxStats>, PodError> {
        let filter = filter.map(|f| cri::PodSandboxFilter {
            id: f.id.clone(),
            label_selector: f.label_selector.clone(),
            state: None,
        });
        let views = self.context.table.views().into_iter();
        let wanted = views.filter(|view| view.ready && filter.as_ref().is_none_or(|f| view.matches(f)));
        stats::of_pods(&self.context, wanted.collect()).await
    }

    /// What the metrics of [`Pods::list_pod_sandbox_metrics`] mean.
    pub fn metric_descriptors(&self) -> Vec<cri::MetricDescriptor> {
        stats::descriptors::all()
    }

    /// The metrics of pods that are ready.
    pub async fn list_pod_sandbox_metrics(&self) -> Result<Vec<cri::PodSandboxMetrics>, PodError> {
        stats::metrics_of_pods(&self.context, self.context.table.views()).await
    }

    /// What RunPodSandbox takes as the name of a runtime handler; the empty one is the default.
    pub fn runtime_handlers(&self) -> Vec<String> {
        self.context.runtimes.names()
    }

    /// Whether pods can have user namespaces of their own, as kubelets ask for them.
    pub fn has_user_namespaces(&self) -> bool {
        user_namespace::is_possible(&self.context.facts)
    }

    /// Whether a mount can be read-only with all that is mounted below it.
    pub fn has_recursive_read_only(&self) -> bool {
        self.context.facts.recursive_read_only
    }

    /// Why pods have no network of their own, where they have none.
    pub async fn network_missing(&self) -> Option<String> {
        self.context.networks.missing().await
    }

    /// Which containers use an image id: for `image list`, and to protect images.
    pub fn image_users(&self) -> HashMap<String, Vec<String>> {
        let mut users: HashMap<String, Vec<String>> = HashMap::new();
        for view in self.context.table.views() {
            for container in view.containers.values() {
                users.entry(container.record.image_id.clone()).or_default().push(container.record.id.to_string());
            }
        }
        users
    }

    /// What happens to containers from now on, for GetContainerEvents. A receiver that lags is to end its stream.
    pub fn subscribe(&self) -> broadcast::Receiver<cri::ContainerEventResponse> {
        self.context.events.subscribe()
    }
}
