//! The only unsafe code: descriptors, mounts, namespaces, processes, terminals. Each block says why it is sound.

pub mod async_fd;
pub mod beneath;
pub mod crash;
pub mod descriptors;
pub mod directory;
pub mod environment;
pub mod filter;
pub mod fork;
pub mod fuse;
pub mod heap;
pub mod kernel;
pub mod loopback;
pub mod namespace;
pub mod namespaces;
pub mod overlay;
pub mod owners;
pub mod pages;
pub mod process;
pub mod propagation;
pub mod random;
pub mod removal;
pub mod sealed;
pub mod signals;
pub mod spawn;
pub mod trial;
pub mod usage;
