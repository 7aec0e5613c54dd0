//! ListContainerStats: of containers that have not exited.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{ListContainerStatsRequest, ListContainerStatsResponse};

/// See the module.
pub async fn list_container_stats(
    services: &Services,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Status> {
    Ok(ListContainerStatsResponse { stats: services.pods()?.list_container_stats(request.filter.as_ref()).await? })
}
