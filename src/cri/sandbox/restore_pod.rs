//! RestorePod: an honest refusal.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{RestorePodRequest, RestorePodResponse};

/// See the module.
pub async fn restore_pod(_services: &Services, _request: RestorePodRequest) -> Result<RestorePodResponse, Status> {
    Err(Status::unimplemented(
        "pods cannot be checkpointed or restored: CRIU needs CAP_CHECKPOINT_RESTORE in the machine's first user namespace, \
         which a rootless node does not have, and the runtime library has no restore",
    ))
}
