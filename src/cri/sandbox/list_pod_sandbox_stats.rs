//! ListPodSandboxStats: of pods that are ready.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{ListPodSandboxStatsRequest, ListPodSandboxStatsResponse};

/// See the module.
pub async fn list_pod_sandbox_stats(
    services: &Services,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Status> {
    Ok(ListPodSandboxStatsResponse { stats: services.pods()?.list_pod_sandbox_stats(request.filter.as_ref()).await? })
}
