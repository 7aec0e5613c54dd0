//! StreamContainers: ListContainers in batches.

use tonic::Status;
use tonic::codegen::BoxStream;

use crate::cri::{Services, stream};
use crate::proto::cri::{StreamContainersRequest, StreamContainersResponse};

/// See the module.
pub async fn stream_containers(
    services: &Services,
    request: StreamContainersRequest,
) -> Result<BoxStream<StreamContainersResponse>, Status> {
    let items = services.pods()?.list_containers(request.filter.as_ref());
    Ok(stream::batches(items, |containers| StreamContainersResponse { containers }))
}
