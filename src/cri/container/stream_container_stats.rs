//! StreamContainerStats: ListContainerStats in batches.

use tonic::Status;
use tonic::codegen::BoxStream;

use crate::cri::{Services, stream};
use crate::proto::cri::{StreamContainerStatsRequest, StreamContainerStatsResponse};

/// See the module.
pub async fn stream_container_stats(
    services: &Services,
    request: StreamContainerStatsRequest,
) -> Result<BoxStream<StreamContainerStatsResponse>, Status> {
    let items = services.pods()?.list_container_stats(request.filter.as_ref()).await?;
    Ok(stream::batches(items, |container_stats| StreamContainerStatsResponse { container_stats }))
}
