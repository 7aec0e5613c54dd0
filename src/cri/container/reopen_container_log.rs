//! ReopenContainerLog.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{ReopenContainerLogRequest, ReopenContainerLogResponse};

/// After the kubelet moved the file away: the new one is there when the answer is.
pub async fn reopen_container_log(
    services: &Services,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Status> {
    let id = validate::not_empty(&request.container_id, "container_id")?;
    services.pods()?.reopen_container_log(id).await?;
    Ok(ReopenContainerLogResponse {})
}
