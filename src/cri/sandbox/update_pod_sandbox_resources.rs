//! UpdatePodSandboxResources: other limits for a pod as a whole.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};

/// A kubelet sets the limits of its pods' cgroups itself and tells afterwards.
pub async fn update_pod_sandbox_resources(
    services: &Services,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Status> {
    let id = validate::not_empty(&request.pod_sandbox_id, "pod_sandbox_id")?;
    services.pods()?.update_pod_sandbox_resources(id, request.overhead.clone(), request.resources.clone()).await?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
