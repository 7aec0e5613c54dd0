//! RemovePodSandbox.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{RemovePodSandboxRequest, RemovePodSandboxResponse};

/// What is gone is removed; what still runs is stopped by force first.
pub async fn remove_pod_sandbox(
    services: &Services,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Status> {
    let id = validate::not_empty(&request.pod_sandbox_id, "pod_sandbox_id")?;
    services.pods()?.remove_pod_sandbox(id).await?;
    Ok(RemovePodSandboxResponse {})
}
