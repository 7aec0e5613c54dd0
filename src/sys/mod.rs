//! See lib.rs; filled by its owner.

/// Memory taken from the kernel, and given back, by the page.
pub mod pages;

/// Processes started in other namespaces, with a descriptor at a number of its own.
pub mod spawn;

/// Descriptors that tokio watches.
pub mod watch;
