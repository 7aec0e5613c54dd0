//! StreamPodSandboxes: ListPodSandbox in batches.

use tonic::Status;
use tonic::codegen::BoxStream;

use crate::cri::{Services, stream};
use crate::proto::cri::{StreamPodSandboxesRequest, StreamPodSandboxesResponse};

/// See the module.
pub async fn stream_pod_sandboxes(
    services: &Services,
    request: StreamPodSandboxesRequest,
) -> Result<BoxStream<StreamPodSandboxesResponse>, Status> {
    let items = services.pods()?.list_pod_sandbox(request.filter.as_ref());
    Ok(stream::batches(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
}
