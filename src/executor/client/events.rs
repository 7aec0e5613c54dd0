//! Events on their way to the pod's task: none is dropped, and a task that is busy does not hold back the replies that
//! it may itself be waiting for.
//!
//! Behind the channel is a queue. It is bounded by nature (a container and an exec each end once, trouble with a log
//! is kept in its latest state), and by [`QUEUE_LIMIT`], beyond which the connection is not read until events are.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use crate::proto::supervisor as wire;
use wire::event::Event as Kind;

/// Events in the channel itself.
const CHANNEL_LENGTH: usize = 64;
/// Events behind a full channel.
const QUEUE_LIMIT: usize = 4096;

/// A sender and the channel's other end.
pub(super) fn channel() -> (EventSender, mpsc::Receiver<wire::Event>) {
    let (sender, receiver) = mpsc::channel(CHANNEL_LENGTH);
    (EventSender { sender, queue: VecDeque::new() }, receiver)
}

/// See the module.
#[derive(Debug)]
pub(super) struct EventSender {
    sender: mpsc::Sender<wire::Event>,
    queue: VecDeque<wire::Event>,
}

impl EventSender {
    /// Takes an event, in order.
    pub(super) fn push(&mut self, event: wire::Event) {
        if let Some(Kind::LogTrouble(trouble)) = &event.event {
            let container = trouble.container_id.clone();
            self.queue.retain(|waiting| !is_trouble_of(waiting, &container));
        }
        self.queue.push_back(event);
        self.send_what_fits();
    }

    /// Whether another event may be pushed.
    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < QUEUE_LIMIT
    }

    /// Hands one waiting event over when there is room for it; waits for ever while none waits. Cancellation safe.
    pub(super) async fn deliver(&mut self) {
        if self.queue.is_empty() {
            return std::future::pending().await;
        }
        match self.sender.reserve().await {
            Ok(permit) => {
                if let Some(event) = self.queue.pop_front() {
                    permit.send(event);
                }
            }
            // Nobody listens any more.
            Err(_) => self.queue.clear(),
        }
    }

    /// Hands over everything that waits, then closes the channel.
    pub(super) async fn finish(mut self) {
        while !self.queue.is_empty() {
            self.deliver().await;
        }
    }

    fn send_what_fits(&mut self) {
        while let Some(event) = self.queue.pop_front() {
            match self.sender.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.queue.push_front(event);
                    return;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => self.queue.clear(),
            }
        }
    }
}

fn is_trouble_of(event: &wire::Event, container: &str) -> bool {
    matches!(&event.event, Some(Kind::LogTrouble(trouble)) if trouble.container_id == container)
}
