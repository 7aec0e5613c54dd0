//! Speaks to registries: the distribution specification's pulling half, over HTTP that is expected to fail.
//!
//! [`hosts`] says where a registry is, [`session`] asks there for one image with one set of credentials, and
//! [`transfer`] streams a blob as if no connection ever broke. Everything that comes is bounded by a named limit before
//! it is read; nothing that comes is trusted before its digest is checked.

mod auth;
mod connector;
mod duration;
mod endpoint;
pub mod error;
pub(super) mod files;
pub mod hosts;
pub mod node;
pub mod patience;
pub mod saved;
pub mod session;
mod token;
pub mod transfer;
