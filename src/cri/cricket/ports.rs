//! Ports: the host ports of pods, for people.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cricket::{PodPorts, PortsRequest, PortsResponse};

/// Of pods that have some.
pub async fn ports(services: &Services, _request: PortsRequest) -> Result<PortsResponse, Status> {
    let pods = services.pods()?.host_ports();
    let pods = pods.into_iter().map(|(pod_id, ports)| PodPorts { pod_id, ports }).collect();
    Ok(PortsResponse { pods })
}
