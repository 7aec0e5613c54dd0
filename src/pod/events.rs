//! What GetContainerEvents sends: a bounded broadcast, in which a slow client loses its own stream and nobody waits.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use crate::pod::view::PodView;
use crate::proto::cri;

/// Events that a client may lag behind before it loses its stream.
const BACKLOG: usize = 1024;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    sender: broadcast::Sender<cri::ContainerEventResponse>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG) }
    }
}

impl Events {
    /// From now on; `Lagged` is the end of a stream.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<cri::ContainerEventResponse> {
        self.sender.subscribe()
    }

    /// Nothing is put together when nobody listens.
    pub(crate) fn send(&self, id: &str, kind: cri::ContainerEventType, pod: &Arc<PodView>) {
        if self.sender.receiver_count() == 0 {
            return;
        }
        let event = cri::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: Some(pod.status()),
            containers_statuses: pod.container_statuses(),
        };
        let _ = self.sender.send(event);
    }
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
