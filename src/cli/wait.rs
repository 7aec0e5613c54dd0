//! Waiting for a container's end: by events, or by asking where the daemon has none (while it restarts, for one).

use std::time::Duration;

use tonic::Streaming;

use super::client::Client;
use crate::proto::cri::{
    ContainerEventResponse, ContainerEventType, ContainerState, ContainerStatus, GetEventsRequest,
};

/// Between two questions where there are no events.
const ASK_INTERVAL: Duration = Duration::from_millis(200);

/// Questions in a row that may fail before the daemon is taken for gone.
const FAILURES: u32 = 50;

/// Resolves when the container has exited.
pub async fn exited(client: &mut Client, id: &str) -> anyhow::Result<ContainerStatus> {
    let mut events =
        client.runtime.get_container_events(GetEventsRequest {}).await.ok().map(tonic::Response::into_inner);
    let mut failures = 0;
    loop {
        match client.container_status(id).await {
            Ok(status) if status.state() == ContainerState::ContainerExited => return Ok(status),
            Ok(_) => failures = 0,
            Err(error) if failures == FAILURES => return Err(error),
            Err(_) => failures += 1,
        }
        match &mut events {
            Some(stream) if failures == 0 => {
                if !next_end(stream, id).await {
                    events = None;
                }
            }
            _ => tokio::time::sleep(ASK_INTERVAL).await,
        }
    }
}

/// True after an event that may be the container's end; false when there are no more events.
async fn next_end(events: &mut Streaming<ContainerEventResponse>, id: &str) -> bool {
    while let Ok(Some(event)) = events.message().await {
        let end = [ContainerEventType::ContainerStoppedEvent, ContainerEventType::ContainerDeletedEvent];
        if event.container_id == id && end.contains(&event.container_event_type()) {
            return true;
        }
    }
    false
}
