//! The Container Runtime Interface: gRPC in, gRPC out, a file per RPC. No system call, no path.
//!
//! A handler checks what it was given, calls the domain or the image service, and turns the answer into CRI's words.
//! It holds no state: dropping it (a client's deadline, a cancelled call) leaves the work to the pod's own task.
//! Before the daemon has recovered its pods ([`Services::set_ready`]) only Version, Status, RuntimeConfig and Node
//! answer; the rest is Unavailable. Checkpoints are refused, with the reason.

mod container;
mod cricket;
mod enums;
mod image;
mod runtime;
mod sandbox;
mod service;
mod status;
mod stream;
mod validate;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::config::Config;
use crate::image::Images;
use crate::pod::Pods;
use crate::pod::session::{AttachRequest, ExecRequest};
use crate::rootless::Node;

pub use status::{MESSAGE_LIMIT_BYTES, code_of_image, code_of_pod};

/// Gives out URLs of sessions; the daemon puts the streaming server behind it.
pub trait SessionUrls: Send + Sync + 'static {
    /// For one exec; the container id is a full one.
    fn exec(&self, request: ExecRequest) -> Result<String, Status>;
    /// For one attach; the container id is a full one.
    fn attach(&self, request: AttachRequest) -> Result<String, Status>;
    /// For connections to a pod; an empty list allows any port.
    fn port_forward(&self, pod_id: String, ports: Vec<u16>) -> Result<String, Status>;
}

/// Hears of every call that was answered; the daemon puts its metrics behind it.
pub trait CallObserver: Send + Sync + 'static {
    /// `method` is the handler's name, `code` gRPC's; both are of a few words known beforehand.
    fn ended(&self, method: &'static str, code: &'static str, took: Duration);
}

/// What is known before anything is opened.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The configuration.
    pub config: Arc<Config>,
    /// The node.
    pub node: Arc<Node>,
}

/// What the services stand on once the daemon is ready.
pub struct Backend {
    /// The domain.
    pub pods: Pods,
    /// The image service.
    pub images: Images,
    /// The streaming server.
    pub sessions: Arc<dyn SessionUrls>,
    /// Called after work that took much memory, so that it goes back to the kernel.
    pub after_large_work: fn(),
}

/// The services on the CRI socket: runtime, images, and our own. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    shared: Arc<Shared>,
}

struct Shared {
    facts: Facts,
    backend: OnceLock<Backend>,
    observer: OnceLock<Arc<dyn CallObserver>>,
    closing: CancellationToken,
}

impl Services {
    /// Services that are not ready yet. Streams that have no end of their own end when `closing` is cancelled.
    pub fn new(facts: Facts, closing: CancellationToken) -> Self {
        Self { shared: Arc::new(Shared { facts, backend: OnceLock::new(), observer: OnceLock::new(), closing }) }
    }

    /// From now on every call is answered. Once.
    pub fn set_ready(&self, backend: Backend) {
        assert!(self.shared.backend.set(backend).is_ok(), "the services become ready once");
    }

    /// From now on it hears of calls. Once.
    pub fn observe(&self, observer: Arc<dyn CallObserver>) {
        assert!(self.shared.observer.set(observer).is_ok(), "calls have one observer");
    }

    fn facts(&self) -> &Facts {
        &self.shared.facts
    }

    fn closing(&self) -> CancellationToken {
        self.shared.closing.clone()
    }

    fn backend(&self) -> Result<&Backend, Status> {
        let starting = || Status::unavailable("cricket is starting: its pods and images are being read; try again");
        self.shared.backend.get().ok_or_else(starting)
    }

    fn pods(&self) -> Result<&Pods, Status> {
        Ok(&self.backend()?.pods)
    }

    fn images(&self) -> Result<&Images, Status> {
        Ok(&self.backend()?.images)
    }
}

#[cfg(test)]
mod tests;
