//! How the daemon speaks to a pod's supervisor, and (`supervisor/`) that other process itself.
//!
//! Everything under `supervisor/` runs in the pod's process: one thread, no tokio. `client.rs` runs in the daemon;
//! `protocol.rs` (framing, versions, descriptor passing, the exit record) is shared by both.

pub mod client;
pub mod leftovers;
pub mod protocol;
pub mod supervisor;
