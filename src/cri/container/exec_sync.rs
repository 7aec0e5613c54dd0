//! ExecSync: a command to its end, with what it wrote.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{ExecSyncRequest, ExecSyncResponse};

/// Past the time-out (seconds; zero: none) the process is dead and the answer is DeadlineExceeded.
pub async fn exec_sync(services: &Services, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
    let id = validate::not_empty(&request.container_id, "container_id")?;
    validate::command(&request.cmd)?;
    let seconds = u64::try_from(request.timeout)
        .map_err(|_| Status::invalid_argument(format!("timeout {} is negative", request.timeout)))?;
    let timeout = (seconds > 0).then(|| validate::seconds(seconds));
    let output = services.pods()?.exec_sync(id, request.cmd, timeout).await?;
    Ok(ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
}
