//! ListMetricDescriptors: what ListPodSandboxMetrics tells.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{ListMetricDescriptorsRequest, ListMetricDescriptorsResponse};

/// See the module.
pub async fn list_metric_descriptors(
    services: &Services,
    _request: ListMetricDescriptorsRequest,
) -> Result<ListMetricDescriptorsResponse, Status> {
    Ok(ListMetricDescriptorsResponse { descriptors: services.pods()?.metric_descriptors() })
}
