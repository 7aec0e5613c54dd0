//! StopPodSandbox.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{StopPodSandboxRequest, StopPodSandboxResponse};

/// What is gone is stopped.
pub async fn stop_pod_sandbox(
    services: &Services,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, Status> {
    let id = validate::not_empty(&request.pod_sandbox_id, "pod_sandbox_id")?;
    services.pods()?.stop_pod_sandbox(id).await?;
    Ok(StopPodSandboxResponse {})
}
