//! CreateContainer.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{CreateContainerRequest, CreateContainerResponse};

/// A repeated call joins the work under way.
pub async fn create_container(
    services: &Services,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Status> {
    let pod_id = validate::not_empty(&request.pod_sandbox_id, "pod_sandbox_id")?;
    let config = validate::container_config(request.config)?;
    let container_id = services.pods()?.create_container(pod_id, config, request.sandbox_config).await?;
    Ok(CreateContainerResponse { container_id })
}
