//! ListPodSandbox: about 1.4 times a second by every kubelet, for ever; from memory.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{ListPodSandboxRequest, ListPodSandboxResponse};

/// See the module.
pub async fn list_pod_sandbox(
    services: &Services,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, Status> {
    Ok(ListPodSandboxResponse { items: services.pods()?.list_pod_sandbox(request.filter.as_ref()) })
}
