//! StreamPodSandboxStats: ListPodSandboxStats in batches.

use tonic::Status;
use tonic::codegen::BoxStream;

use crate::cri::{Services, stream};
use crate::proto::cri::{StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse};

/// See the module.
pub async fn stream_pod_sandbox_stats(
    services: &Services,
    request: StreamPodSandboxStatsRequest,
) -> Result<BoxStream<StreamPodSandboxStatsResponse>, Status> {
    let items = services.pods()?.list_pod_sandbox_stats(request.filter.as_ref()).await?;
    Ok(stream::batches(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}
