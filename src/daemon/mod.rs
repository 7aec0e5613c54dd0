//! The daemon: what is started in which order, and how it ends. No request is handled here.
//!
//! ```text
//! one thread:  directories -> lock -> socket (bound: clients may connect and wait) -> join the node
//! then tokio:  serve (Status: not ready) -> images -> template -> network -> pods (recovery) -> streaming -> ready
//! SIGTERM:     no new calls -> calls under way end, or DRAIN_TIMEOUT passes -> exit; pods run on, silent clients are left
//! ```
//!
//! Joining a user namespace asks for a process with one thread, so all of the first line happens before tokio.
//! A panic in a handler is one failed call and a line in the log ([`guard`]).

mod directories;
mod guard;
mod journal;
mod logging;
mod network;
mod observer;
mod server;
mod session_urls;
mod shutdown;
mod socket;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::cri::{Facts, Services};
use crate::executor::client::ExecutorError;
use crate::image::ImageError;
use crate::metrics::{Calls, MetricsError};
use crate::pod::PodError;
use crate::rootless::{self, Node};
use crate::store::{Lock, LockError};
use crate::streaming::StreamingError;
use crate::sys;

use guard::UnderWay;

pub use directories::root_of;

use socket::Socket;

/// Threads that drive the gRPC services; the work is elsewhere.
const WORKER_THREADS: usize = 2;

/// Threads for work that blocks: unpacking, syncing.
const BLOCKING_THREADS: usize = 16;

/// Calls under way may end for so long after SIGTERM.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Between the last call's end and the daemon's, for connections to close in order: a client may be silent for ever.
const FAREWELL: Duration = Duration::from_millis(200);

/// Why the daemon could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A directory cannot be made or is not ours.
    #[error("{path}: {problem}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The socket cannot be had.
    #[error("socket {path}: {problem}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Another daemon runs on this root.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No node.
    #[error(transparent)]
    Node(#[from] rootless::RootlessError),
    /// The image store.
    #[error("cannot open the image store: {0}")]
    Images(#[from] ImageError),
    /// The process from which supervisors are forked.
    #[error("cannot start the template of supervisors: {0}")]
    Template(#[from] ExecutorError),
    /// Recovery.
    #[error("cannot read back the pods: {0}")]
    Pods(#[from] PodError),
    /// Exec, attach, port-forward.
    #[error(transparent)]
    Streaming(#[from] StreamingError),
    /// The daemon's own metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// gRPC.
    #[error("the gRPC server failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// Threads, signals, descriptors.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl DaemonError {
    fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// Runs the daemon until SIGTERM or SIGINT. The caller has one thread.
pub fn serve(config: Config) -> Result<(), DaemonError> {
    sys::heap::limit_arenas();
    logging::start(&config.log_level);
    // Who is refused has made nothing.
    Lock::refuse_held(&config.root)?;
    Lock::refuse_held(&config.state)?;
    socket::refuse_taken(&config.socket)?;
    directories::refuse_shared(&config)?;
    rootless::refuse_unmapped(&config)?;
    let _locks = [Lock::acquire(&config.root)?, Lock::acquire(&config.state)?];
    directories::prepare(&config)?;
    directories::pair(&config)?;
    let socket = Socket::bind(&config.socket)?;
    let node = rootless::join(&config)?;
    report(&config, &node);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("cricket")
        .enable_all()
        .build()
        .map_err(DaemonError::io("starting threads"))?;
    let facts = Facts { config: Arc::new(config), node: Arc::new(node) };
    rootless::keep(facts.config.state.clone(), Arc::clone(&facts.node))
        .map_err(DaemonError::io("starting a thread"))?;
    let result = runtime.block_on(run(facts, &socket));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Serves from the first moment, becomes ready, ends.
async fn run(facts: Facts, socket: &Socket) -> Result<(), DaemonError> {
    shutdown::feed_watchdog();
    let requests = shutdown::Requests::listen().map_err(DaemonError::io("waiting for signals"))?;
    let closing = CancellationToken::new();
    let services = Services::new(facts.clone(), closing.clone());
    let calls = Calls::default();
    if facts.config.metrics_address.is_some() {
        services.observe(Arc::new(observer::Observer(calls.clone())));
    }
    let under_way = UnderWay::default();
    let server = server::serve(socket.connections()?, services.clone(), closing.clone(), under_way.clone());
    tokio::pin!(server);
    let start = async {
        let backend = start::open(&facts, &calls, closing.clone()).await?;
        services.set_ready(backend);
        shutdown::tell_ready();
        tracing::info!(socket = %facts.config.socket.display(), "ready");
        Ok::<_, DaemonError>(std::future::pending::<std::convert::Infallible>().await)
    };
    tokio::select! {
        result = &mut server => return result.map_err(DaemonError::from),
        result = start => match result? {},
        () = requests.one() => {}
    }
    shutdown::tell_stopping();
    closing.cancel();
    let calm = async {
        under_way.none().await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        _ = server => {}
        () = calm => {}
        () = tokio::time::sleep(DRAIN_TIMEOUT) => {
            tracing::warn!("calls were still under way after {DRAIN_TIMEOUT:?}: their clients will ask again");
        }
    }
    tracing::info!("stopped; pods run on");
    Ok(())
}

/// One line for whoever reads the log: where, as what, and what cannot be enforced.
fn report(config: &Config, node: &Node) {
    let (root, state) = (config.root.display(), config.state.display());
    tracing::info!(node = ?node.kind, pid = node.pid, %root, %state, "cricket {}", env!("CARGO_PKG_VERSION"));
    for missing in &node.cgroups.missing {
        tracing::warn!("not enforced: {missing}");
    }
}
