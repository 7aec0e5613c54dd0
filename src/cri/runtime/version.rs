//! Version: a kubelet compares the answer's `version` with its own "0.1.0" and refuses any other.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cri::{VersionRequest, VersionResponse};

/// Of the kubelet's side of the interface; never changed since.
const KUBELET_API_VERSION: &str = "0.1.0";

/// Of the gRPC package that is spoken.
const RUNTIME_API_VERSION: &str = "v1";

/// See the module; whatever version is asked for, the answer is the same.
pub async fn version(_services: &Services, _request: VersionRequest) -> Result<VersionResponse, Status> {
    Ok(VersionResponse {
        version: KUBELET_API_VERSION.to_owned(),
        runtime_name: env!("CARGO_PKG_NAME").to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: RUNTIME_API_VERSION.to_owned(),
    })
}
