//! RuntimeConfig: which cgroup driver the kubelet is to use.

use tonic::Status;

use crate::config::CgroupDriver;
use crate::cri::Services;
use crate::proto::cri::{self, LinuxRuntimeConfiguration, RuntimeConfigRequest, RuntimeConfigResponse};

/// See the module.
pub async fn runtime_config(
    services: &Services,
    _request: RuntimeConfigRequest,
) -> Result<RuntimeConfigResponse, Status> {
    let driver = match services.facts().config.cgroup_driver {
        CgroupDriver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        CgroupDriver::Systemd => cri::CgroupDriver::Systemd,
    };
    Ok(RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) })
}
