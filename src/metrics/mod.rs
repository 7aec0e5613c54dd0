//! The daemon's own metrics: what it was asked and what it holds, for Prometheus, at `/metrics`.
//!
//! Off unless the configuration names an address. Served over plain HTTP without any credential, so the address belongs
//! on a loopback; what is told are counts and names of calls, never of pods, images or people. What pods use is told by
//! CRI (ListPodSandboxMetrics), which kubelets pass on.
//!
//! `calls.rs` counts what the gRPC services answer; `held.rs` looks at pods and images when somebody asks; `server.rs`
//! is the listener.

mod calls;
mod held;
mod server;

use std::io;
use std::net::SocketAddr;

pub use calls::Calls;
pub use server::Server;

/// The metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {source}; name another address with [metrics] address")]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}
