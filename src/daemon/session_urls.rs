//! Puts the streaming server behind the CRI's calls for URLs, and opens its listeners.
//!
//! A kubelet dials the URL from inside the node, a person's crictl from the host: where these are two network
//! namespaces, the same port is bound on the loopback of both.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use tonic::Status;

use super::DaemonError;
use crate::cri::SessionUrls;
use crate::pod::session::{AttachRequest, ExecRequest};
use crate::rootless::{Node, NodeKind};
use crate::streaming::{Server, StreamingError};
use crate::sys::namespace::Namespace;

/// Free ports of the host that are tried until one is free in the node too.
const PORT_TRIALS: usize = 16;

/// See the module.
pub struct Urls(pub Server);

impl SessionUrls for Urls {
    fn exec(&self, request: ExecRequest) -> Result<String, Status> {
        self.0.exec(request).map_err(refused)
    }

    fn attach(&self, request: AttachRequest) -> Result<String, Status> {
        self.0.attach(request).map_err(refused)
    }

    fn port_forward(&self, pod_id: String, ports: Vec<u16>) -> Result<String, Status> {
        self.0.port_forward(pod_id, ports).map_err(refused)
    }
}

fn refused(error: StreamingError) -> Status {
    match error {
        StreamingError::TooManyTokens(_) => Status::resource_exhausted(error.to_string()),
        StreamingError::Listen { .. } => Status::internal(error.to_string()),
    }
}

/// A listener in our own network namespace and, where the node has another, one of the same port there.
pub fn listeners(address: SocketAddr, node: &Node) -> Result<Vec<TcpListener>, DaemonError> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIALS {
        let here = TcpListener::bind(address).map_err(|source| cannot_listen(address, source))?;
        if node.kind != NodeKind::Made {
            return Ok(vec![here]);
        }
        let chosen = here.local_addr().map_err(|source| cannot_listen(address, source))?;
        match listen_in_node(chosen, node) {
            Ok(there) => return Ok(vec![here, there]),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && address.port() == 0 => last = error,
            Err(error) => return Err(cannot_listen(chosen, error)),
        }
    }
    Err(cannot_listen(address, last))
}

/// A socket belongs to the network namespace of the thread that made it: a thread of its own joins the node's, binds
/// and ends.
fn listen_in_node(address: SocketAddr, node: &Node) -> io::Result<TcpListener> {
    let network = node.network.as_fd();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("listen-in-node".to_owned()).spawn_scoped(scope, || {
            Namespace::Network.enter(network)?;
            TcpListener::bind(address)
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that binds in the node panicked")))
    })
}

fn cannot_listen(address: SocketAddr, source: io::Error) -> DaemonError {
    DaemonError::Streaming(StreamingError::Listen { address: address.to_string(), source })
}
