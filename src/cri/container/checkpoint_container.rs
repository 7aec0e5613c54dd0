//! CheckpointContainer: an honest refusal.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{CheckpointContainerRequest, CheckpointContainerResponse};

/// See the module.
pub async fn checkpoint_container(
    services: &Services,
    request: CheckpointContainerRequest,
) -> Result<CheckpointContainerResponse, Status> {
    // Of a container that is not there the client is told that first.
    services.pods()?.container_status(&request.container_id, false)?;
    Err(Status::unimplemented(
        "containers cannot be checkpointed: CRIU needs CAP_CHECKPOINT_RESTORE in the machine's first user namespace, which a \
         rootless node does not have, and the runtime library has no restore",
    ))
}
