//! One connection: requests with ids out, replies in any order and events in. See `client`.
//!
//! A task reads; callers write, each datagram whole. The task ends, and with it every wait, when the other end is gone
//! or speaks nonsense, or when the last owner of the [`Connection`] drops it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::events::EventSender;
use super::{ExecutorError, io};
use crate::executor::protocol::{self, MESSAGE_LIMIT, ProtocolError, Received};
use crate::proto::supervisor as wire;
use crate::sys::async_fd;

thread_local! {
    /// What a thread of the daemon receives into: a buffer a connection would cost each pod its share.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What came in.
pub(super) enum Arrival<R> {
    /// To the request of that id.
    Reply(u64, R),
    /// Unasked.
    Event(wire::Event),
    /// Of a later minor version: to be ignored.
    Unknown,
}

/// The messages of one kind of peer.
pub(super) trait Incoming: Message + Default {
    /// What a caller waits for.
    type Reply: Send + 'static;
    /// Tells replies from events.
    fn sort(self) -> Arrival<Self::Reply>;
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection<M: Incoming> {
    shared: Arc<Shared<M::Reply>>,
    reader: AbortHandle,
}

#[derive(Debug)]
struct Shared<R> {
    socket: AsyncFd<OwnedFd>,
    last_id: AtomicU64,
    /// `None` once the connection is closed.
    waiting: Mutex<Option<Waiting<R>>>,
}

/// Bounded by the requests that callers have under way.
type Waiting<R> = HashMap<u64, oneshot::Sender<Received<R>>>;

impl<M: Incoming + 'static> Connection<M> {
    /// Takes a connected socket; needs a runtime.
    pub(super) fn open(socket: OwnedFd, events: Option<EventSender>) -> std::io::Result<Arc<Self>> {
        protocol::set_nonblocking(&socket, true)?;
        let shared = Arc::new(Shared {
            socket: async_fd::register(socket, Interest::READABLE | Interest::WRITABLE)?,
            last_id: AtomicU64::new(0),
            waiting: Mutex::new(Some(HashMap::new())),
        });
        let reader = tokio::spawn(read::<M>(shared.clone(), events)).abort_handle();
        Ok(Arc::new(Self { shared, reader }))
    }

    /// A request id that was not used on this connection.
    pub(super) fn next_id(&self) -> u64 {
        self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether the other end is known to be gone.
    pub(super) fn is_closed(&self) -> bool {
        self.shared.waiting().is_none()
    }

    /// Sends a request and waits for the reply that bears its id. The descriptors are closed once they are sent.
    pub(super) async fn exchange<Q: Message>(
        &self,
        id: u64,
        request: &Q,
        descriptors: Vec<OwnedFd>,
        deadline: Duration,
    ) -> Result<Received<M::Reply>, ExecutorError> {
        let bytes = protocol::encode(request).map_err(unsendable)?;
        let (sender, receiver) = oneshot::channel();
        self.shared.waiting().as_mut().ok_or(ExecutorError::Gone)?.insert(id, sender);
        let _forget = Forget { shared: &self.shared, id };
        let exchange = async {
            self.shared.send(&bytes, descriptors).await?;
            receiver.await.map_err(|_| ExecutorError::Gone)
        };
        within(deadline, exchange).await
    }
}

impl<M: Incoming> Drop for Connection<M> {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl<R> Shared<R> {
    fn waiting(&self) -> MutexGuard<'_, Option<Waiting<R>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<(), ExecutorError> {
        loop {
            let mut ready = self.socket.writable().await.map_err(io("waiting for a supervisor's socket"))?;
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            match protocol::send_encoded(self.socket.get_ref(), bytes, &borrowed) {
                Err(ProtocolError::NotReady) => ready.clear_ready(),
                result => return result.map_err(unsendable),
            }
        }
    }
}

/// Takes a request off the list however its wait ends. A reply that comes later finds nobody and is closed.
struct Forget<'a, R> {
    shared: &'a Shared<R>,
    id: u64,
}

impl<R> Drop for Forget<'_, R> {
    fn drop(&mut self) {
        if let Some(waiting) = self.shared.waiting().as_mut() {
            waiting.remove(&self.id);
        }
    }
}

async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, ExecutorError>>,
) -> Result<T, ExecutorError> {
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(ExecutorError::Timeout(deadline)))
}

fn unsendable(error: ProtocolError) -> ExecutorError {
    match error {
        ProtocolError::Closed => ExecutorError::Gone,
        ProtocolError::Io { action, source } => ExecutorError::Io { action: action.to_owned(), source },
        error => {
            let message = format!("the request cannot be sent to the pod's supervisor: {error}");
            ExecutorError::Refused { kind: wire::ErrorKind::InvalidArgument, message }
        }
    }
}

async fn read<M: Incoming>(shared: Arc<Shared<M::Reply>>, mut events: Option<EventSender>) {
    let failure = loop {
        tokio::select! {
            () = deliver(&mut events) => {}
            ready = shared.socket.ready(Interest::READABLE), if has_room(&events) => {
                let Ok(mut ready) = ready else { break None };
                match take_in::<M>(&shared, &mut events) {
                    Ok(()) => {}
                    Err(ProtocolError::NotReady) => ready.clear_ready(),
                    Err(ProtocolError::Closed) => break None,
                    Err(error) => break Some(error),
                }
            }
        }
    };
    if let Some(error) = failure {
        tracing::warn!(%error, "the connection to a supervisor is given up");
    }
    // Dropping the senders wakes every caller.
    *shared.waiting() = None;
    if let Some(events) = events {
        events.finish().await;
    }
}

async fn deliver(events: &mut Option<EventSender>) {
    match events {
        Some(events) => events.deliver().await,
        None => std::future::pending().await,
    }
}

fn has_room(events: &Option<EventSender>) -> bool {
    events.as_ref().is_none_or(EventSender::has_room)
}

fn take_in<M: Incoming>(shared: &Shared<M::Reply>, events: &mut Option<EventSender>) -> Result<(), ProtocolError> {
    let Received { message, descriptors } = BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(MESSAGE_LIMIT, 0);
        protocol::receive::<M>(shared.socket.get_ref(), buffer)
    })?;
    match message.sort() {
        Arrival::Reply(id, message) => {
            let sender = shared.waiting().as_mut().and_then(|waiting| waiting.remove(&id));
            if let Some(sender) = sender {
                // The caller may have given up meanwhile; then the descriptors close here.
                let _ = sender.send(Received { message, descriptors });
            }
        }
        Arrival::Event(event) => {
            if let Some(events) = events {
                events.push(event);
            }
        }
        Arrival::Unknown => {}
    }
    Ok(())
}
