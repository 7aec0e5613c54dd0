//! ContainerStats: what a container uses now.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{ContainerStatsRequest, ContainerStatsResponse};

/// One that has exited has only what it wrote.
pub async fn container_stats(
    services: &Services,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Status> {
    let id = validate::not_empty(&request.container_id, "container_id")?;
    Ok(ContainerStatsResponse { stats: Some(services.pods()?.container_stats(id).await?) })
}
