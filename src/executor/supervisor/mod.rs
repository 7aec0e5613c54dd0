//! The pod's process: one thread, no tokio.
