//! The pod's process: one thread, no tokio.

/// The CRI log of a container, and the copies for who is attached.
pub mod log;
