//! Node: where the node is, what it cannot enforce, and where a client puts the logs of pods that no kubelet made.

use tonic::Status;

use crate::cri::Services;
use crate::proto::cricket::{NodeRequest, NodeResponse};

/// Below the root: on disk, so that a log outlives a full tmpfs.
const LOG_DIRECTORY: &str = "logs";

/// Also before the daemon is ready.
pub async fn node(services: &Services, _request: NodeRequest) -> Result<NodeResponse, Status> {
    let facts = services.facts();
    Ok(NodeResponse {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        root: facts.config.root.display().to_string(),
        state: facts.config.state.display().to_string(),
        pid: facts.node.pid,
        log_directory: facts.config.root.join(LOG_DIRECTORY).display().to_string(),
        not_enforced: facts.node.cgroups.missing.clone(),
    })
}
