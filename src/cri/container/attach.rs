//! Attach: a URL at which the streams of a container are served.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::pod::session;
use crate::proto::cri::{AttachRequest, AttachResponse};

/// The container must run, or be about to: who attaches before the start misses no output.
pub async fn attach(services: &Services, request: AttachRequest) -> Result<AttachResponse, Status> {
    let id = validate::not_empty(&request.container_id, "container_id")?;
    validate::streams(request.tty, request.stdin, request.stdout, request.stderr)?;
    let backend = services.backend()?;
    let session = session::AttachRequest {
        container_id: backend.pods.check_attach(id)?,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    Ok(AttachResponse { url: backend.sessions.attach(session)? })
}
