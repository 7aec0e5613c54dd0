//! ListPodSandboxMetrics: of pods that are ready, in the words of ListMetricDescriptors.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{ListPodSandboxMetricsRequest, ListPodSandboxMetricsResponse};

/// See the module.
pub async fn list_pod_sandbox_metrics(
    services: &Services,
    _request: ListPodSandboxMetricsRequest,
) -> Result<ListPodSandboxMetricsResponse, Status> {
    Ok(ListPodSandboxMetricsResponse { pod_metrics: services.pods()?.list_pod_sandbox_metrics().await? })
}
