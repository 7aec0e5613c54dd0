//! Exec, attach and port-forward for clients: tokens, HTTP upgrade, SPDY/3.1 and WebSocket.
//!
//! A CRI call is answered with a URL that bears a random single-use token ([`token`]); the client dials it and asks
//! for an upgrade ([`http`]). What follows is remotecommand (channels of one process, [`remote_command`]) or
//! port-forward (connections to a pod, [`port_forward`]), over SPDY ([`spdy`]), over WebSocket ([`websocket`]), or
//! over SPDY inside WebSocket. The domain is reached only through [`crate::pod::session::Sessions`].
//!
//! Every buffer is bounded: a client that does not read stops the process's output in its pipe, not in memory.

mod chunks;
mod descriptor;
#[cfg(test)]
mod fuzz;
mod http;
mod port_forward;
mod remote_command;
mod spdy;
mod token;
mod websocket;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use crate::pod::session::{AttachRequest, ExecRequest, Sessions};

use token::{Ticket, Tokens};

/// The client opens all of its streams within this time of the upgrade.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest piece of a stream that is handled at once.
const CHUNK_BYTES: usize = 32 << 10;

/// Pieces that wait between two tasks of one stream: with [`CHUNK_BYTES`], the memory of a stalled stream.
const CHUNKS_WAITING: usize = 4;

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum StreamingError {
    /// The listener cannot be used.
    #[error("streaming server: cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// As many tokens are out as are allowed.
    #[error("{0} sessions have been asked for and not begun; try again in a minute")]
    TooManyTokens(usize),
}

/// The server; cheap to clone. It ends when its last clone is dropped; sessions that have begun go on.
#[derive(Clone)]
pub struct Server {
    tokens: Arc<Tokens>,
    address: SocketAddr,
    _accepting: Arc<Vec<AcceptTask>>,
}

struct AcceptTask(tokio::task::JoinHandle<()>);

impl Drop for AcceptTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    /// Serves on `listeners`, all of one port: the loopback of the host and, where it is another, of the node.
    pub fn start(listeners: Vec<TcpListener>, sessions: Arc<dyn Sessions>) -> Result<Self, StreamingError> {
        let tokens = Arc::new(Tokens::default());
        let listen_error = |source| StreamingError::Listen { address: "the given socket".to_owned(), source };
        let mut address = None;
        let mut accepting = Vec::new();
        for listener in listeners {
            let local = listener.local_addr().map_err(listen_error)?;
            address.get_or_insert(local);
            listener.set_nonblocking(true).map_err(listen_error)?;
            let listener = tokio::net::TcpListener::from_std(listener).map_err(listen_error)?;
            let task = http::accept(listener, Arc::clone(&tokens), Arc::clone(&sessions));
            accepting.push(AcceptTask(tokio::spawn(task)));
        }
        let address = address.ok_or_else(|| listen_error(std::io::ErrorKind::AddrNotAvailable.into()))?;
        Ok(Self { tokens, address, _accepting: Arc::new(accepting) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL for one exec.
    pub fn exec(&self, request: ExecRequest) -> Result<String, StreamingError> {
        self.url("exec", Ticket::Exec(request))
    }

    /// A URL for one attach.
    pub fn attach(&self, request: AttachRequest) -> Result<String, StreamingError> {
        self.url("attach", Ticket::Attach(request))
    }

    /// A URL for connections to ports of a pod; an empty list allows any port.
    pub fn port_forward(&self, pod_id: String, ports: Vec<u16>) -> Result<String, StreamingError> {
        self.url("portforward", Ticket::PortForward { pod_id, ports })
    }

    fn url(&self, kind: &str, ticket: Ticket) -> Result<String, StreamingError> {
        let token = self.tokens.issue(ticket)?;
        Ok(format!("http://{}/{kind}/{token}", self.address))
    }
}
