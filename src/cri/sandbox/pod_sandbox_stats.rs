//! PodSandboxStats: what a pod uses now, with its containers.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{PodSandboxStatsRequest, PodSandboxStatsResponse};

/// See the module.
pub async fn pod_sandbox_stats(
    services: &Services,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Status> {
    let id = validate::not_empty(&request.pod_sandbox_id, "pod_sandbox_id")?;
    Ok(PodSandboxStatsResponse { stats: Some(services.pods()?.pod_sandbox_stats(id).await?) })
}
