//! StartContainer.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{StartContainerRequest, StartContainerResponse};

/// Starts a created container; a missing program was already found when it was created.
pub async fn start_container(
    services: &Services,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Status> {
    let id = validate::not_empty(&request.container_id, "container_id")?;
    services.pods()?.start_container(id).await?;
    Ok(StartContainerResponse {})
}
