//! RemoveContainer.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{RemoveContainerRequest, RemoveContainerResponse};

/// What is gone is removed; what runs is killed first.
pub async fn remove_container(
    services: &Services,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Status> {
    let id = validate::not_empty(&request.container_id, "container_id")?;
    services.pods()?.remove_container(id).await?;
    Ok(RemoveContainerResponse {})
}
