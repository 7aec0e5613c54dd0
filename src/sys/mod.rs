//! The only unsafe code: descriptors, mounts, namespaces, processes, terminals. Each block says why it is sound.

pub mod descriptors;
pub mod directory;
pub mod fork;
pub mod kernel;
pub mod loopback;
pub mod namespace;
pub mod process;
pub mod sealed;
pub mod trial;
