//! RunPodSandbox.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{RunPodSandboxRequest, RunPodSandboxResponse};

/// A repeated call joins the work under way.
pub async fn run_pod_sandbox(
    services: &Services,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, Status> {
    let config = validate::sandbox_config(request.config)?;
    let pod_sandbox_id = services.pods()?.run_pod_sandbox(config, request.runtime_handler).await?;
    Ok(RunPodSandboxResponse { pod_sandbox_id })
}
