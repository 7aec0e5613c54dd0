//! ContainerStatus.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{ContainerStatusRequest, ContainerStatusResponse};

/// From memory.
pub async fn container_status(
    services: &Services,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Status> {
    let id = validate::not_empty(&request.container_id, "container_id")?;
    Ok(services.pods()?.container_status(id, request.verbose)?)
}
