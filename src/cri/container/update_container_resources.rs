//! UpdateContainerResources: other limits for a container that is created or runs.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};

/// What a request leaves at zero stays as it is. What cannot be enforced here is told by ContainerStatus.
pub async fn update_container_resources(
    services: &Services,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Status> {
    let id = validate::not_empty(&request.container_id, "container_id")?;
    let resources = validate::present(request.linux.clone(), "linux")?;
    services.pods()?.update_container_resources(id, resources).await?;
    Ok(UpdateContainerResourcesResponse {})
}
