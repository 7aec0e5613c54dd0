//! CheckpointContainer: an honest refusal.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{CheckpointContainerRequest, CheckpointContainerResponse};

/// See the module.
pub async fn checkpoint_container(
    _services: &Services,
    _request: CheckpointContainerRequest,
) -> Result<CheckpointContainerResponse, Status> {
    Err(Status::unimplemented(
        "containers cannot be checkpointed: CRIU needs CAP_CHECKPOINT_RESTORE in the machine's first user namespace, which a \
         rootless node does not have, and the runtime library has no restore",
    ))
}
