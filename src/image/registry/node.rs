//! The node's network, where it is not the one that pulls go by.
//!
//! The daemon of an ordinary user stays in the host's network; pods, and what runs under `cricket enter`, have the
//! node's. A registry at a loopback address may be in either. A socket belongs to the namespace of the thread that
//! makes it: so one thread, started by the first pull that needs it, joins the node's and drives what is dialled there.
//! It reads the connections; what comes of them is unpacked elsewhere. It ends with the last pull that holds it and the
//! daemon.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

/// The node's network namespace and the thread in it.
#[derive(Debug)]
pub struct NodeNetwork {
    namespace: Arc<OwnedFd>,
    thread: Mutex<Option<Thread>>,
}

#[derive(Debug)]
struct Thread {
    handle: Handle,
    /// The thread ends when this is dropped.
    _end: DropGuard,
}

impl NodeNetwork {
    /// Nothing is joined before the first use.
    pub fn new(namespace: Arc<OwnedFd>) -> Self {
        Self { namespace, thread: Mutex::new(None) }
    }

    /// Does `work` there; it stops when the future is dropped.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
        let task = AbortOnDropHandle::new(self.handle()?.spawn(work));
        task.await.map_err(io::Error::other)
    }

    /// Whether somebody accepts connections there.
    pub async fn has_listener(&self, host: &str, port: u16, within: Duration) -> bool {
        // As in a URL: an IPv6 address in brackets.
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let dial = async move { tokio::time::timeout(within, TcpStream::connect((name, port))).await };
        matches!(self.run(dial).await, Ok(Ok(Ok(_))))
    }

    fn handle(&self) -> io::Result<Handle> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let running = match thread.take() {
            Some(running) => running,
            None => start(Arc::clone(&self.namespace))?,
        };
        Ok(thread.insert(running).handle.clone())
    }
}

fn start(namespace: Arc<OwnedFd>) -> io::Result<Thread> {
    let end = CancellationToken::new();
    let ended = end.clone();
    let (answer, answered) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name("node-registry".into()).spawn(move || {
        let joined = setns(&*namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        // Threads that it starts for looking names up are in the namespace too.
        match joined.and_then(|()| Builder::new_current_thread().enable_all().build()) {
            Ok(runtime) => {
                let _ = answer.send(Ok(runtime.handle().clone()));
                runtime.block_on(ended.cancelled());
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    })?;
    let handle = answered.recv().map_err(io::Error::other)??;
    Ok(Thread { handle, _end: end.drop_guard() })
}
