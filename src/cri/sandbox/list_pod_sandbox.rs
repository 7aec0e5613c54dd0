//! ListPodSandbox: about 1.4 times a second by every kubelet, for ever; from memory.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{ListPodSandboxRequest, ListPodSandboxResponse};

/// See the module.
pub async fn list_pod_sandbox(
    services: &Services,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, Status> {
    Ok(ListPodSandboxResponse::encoded(services.pods()?.encoded_pod_sandboxes(request.filter.as_ref())))
}
