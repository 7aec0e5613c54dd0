//! StopContainer.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{StopContainerRequest, StopContainerResponse};

/// The stop signal, then SIGKILL after the time-out (seconds; zero or less: at once). What is gone is stopped.
pub async fn stop_container(
    services: &Services,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, Status> {
    let id = validate::not_empty(&request.container_id, "container_id")?;
    let timeout = validate::seconds(u64::try_from(request.timeout).unwrap_or(0));
    services.pods()?.stop_container(id, timeout).await?;
    Ok(StopContainerResponse {})
}
