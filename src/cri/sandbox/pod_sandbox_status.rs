//! PodSandboxStatus.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{PodSandboxStatusRequest, PodSandboxStatusResponse};

/// From memory.
pub async fn pod_sandbox_status(
    services: &Services,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Status> {
    let id = validate::not_empty(&request.pod_sandbox_id, "pod_sandbox_id")?;
    Ok(services.pods()?.pod_sandbox_status(id, request.verbose)?)
}
