//! See lib.rs; filled by its owner.
pub mod async_fd;
pub mod heap;
