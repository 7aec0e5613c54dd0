//! PortForward: a URL at which connections to a pod are served.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{PortForwardRequest, PortForwardResponse};

/// The pod must be ready; the ports are checked, an empty list allows any.
pub async fn port_forward(services: &Services, request: PortForwardRequest) -> Result<PortForwardResponse, Status> {
    let id = validate::not_empty(&request.pod_sandbox_id, "pod_sandbox_id")?;
    let ports = request.port.iter().map(|port| validate::port(*port)).collect::<Result<Vec<u16>, Status>>()?;
    let backend = services.backend()?;
    let id = backend.pods.check_port_forward(id)?;
    Ok(PortForwardResponse { url: backend.sessions.port_forward(id, ports)? })
}
