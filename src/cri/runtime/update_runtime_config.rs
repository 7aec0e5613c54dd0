//! UpdateRuntimeConfig: the kubelet's pod address range. The address ranges of the configuration stay in force, so
//! the range is noted in the log and accepted: kubelets send it whether or not the runtime assigns addresses.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};

/// See the module.
pub async fn update_runtime_config(
    _services: &Services,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Status> {
    if let Some(network) = request.runtime_config.and_then(|config| config.network_config) {
        tracing::info!(pod_cidr = %network.pod_cidr, "the kubelet named a range of pod addresses");
    }
    Ok(UpdateRuntimeConfigResponse {})
}
