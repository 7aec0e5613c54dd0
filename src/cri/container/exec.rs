//! Exec: a URL at which a command's streams are served.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::pod::session;
use crate::proto::cri::{ExecRequest, ExecResponse};

/// The container must run now; the command is started when the URL is dialled.
pub async fn exec(services: &Services, request: ExecRequest) -> Result<ExecResponse, Status> {
    let id = validate::not_empty(&request.container_id, "container_id")?;
    validate::command(&request.cmd)?;
    validate::streams(request.tty, request.stdin, request.stdout, request.stderr)?;
    let backend = services.backend()?;
    let session = session::ExecRequest {
        container_id: backend.pods.check_session(id)?,
        command: request.cmd,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    Ok(ExecResponse { url: backend.sessions.exec(session)? })
}
