//! ListContainers: about 1.5 times a second by every kubelet, for ever; from memory.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{ListContainersRequest, ListContainersResponse};

/// See the module.
pub async fn list_containers(
    services: &Services,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, Status> {
    Ok(ListContainersResponse::encoded(services.pods()?.encoded_containers(request.filter.as_ref())))
}
