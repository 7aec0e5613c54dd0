//! StreamPodSandboxMetrics: ListPodSandboxMetrics in batches.

use tonic::Status;
use tonic::codegen::BoxStream;

use crate::cri::{Services, stream};
use crate::proto::cri::{StreamPodSandboxMetricsRequest, StreamPodSandboxMetricsResponse};

/// See the module.
pub async fn stream_pod_sandbox_metrics(
    services: &Services,
    _request: StreamPodSandboxMetricsRequest,
) -> Result<BoxStream<StreamPodSandboxMetricsResponse>, Status> {
    let items = services.pods()?.list_pod_sandbox_metrics().await?;
    Ok(stream::batches(items, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
}
