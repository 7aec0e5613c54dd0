//! Which pod has which host ports, for lists.

use std::collections::HashMap;

use super::client::{Client, told};
use crate::proto::cricket::PortsRequest;

/// By the pod's id, such as `8080->80/tcp` and `127.0.0.1:53->53/udp`. An older daemon, which cannot tell, has told of
/// none.
pub async fn ports(client: &mut Client) -> anyhow::Result<HashMap<String, Vec<String>>> {
    match client.cricket.ports(PortsRequest {}).await {
        Err(status) if status.code() == tonic::Code::Unimplemented => Ok(HashMap::new()),
        answer => {
            let pods = answer.map_err(told)?.into_inner().pods.into_iter();
            Ok(pods.map(|pod| (pod.pod_id, pod.ports)).collect())
        }
    }
}
