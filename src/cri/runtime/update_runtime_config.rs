//! UpdateRuntimeConfig: the kubelet's range of pod addresses, which stands above that of the configuration.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};

/// See the module.
pub async fn update_runtime_config(
    services: &Services,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Status> {
    let network = request.runtime_config.and_then(|config| config.network_config);
    // A node that has no range yet is announced with an empty one.
    if let Some(network) = network.filter(|network| !network.pod_cidr.is_empty()) {
        services.pods()?.change_pod_ranges(&network.pod_cidr).await?;
        tracing::info!(pod_cidr = %network.pod_cidr, "new pods get addresses of the range that the kubelet named");
    }
    Ok(UpdateRuntimeConfigResponse {})
}
