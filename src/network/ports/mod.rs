//! Host ports.
mod mapping;

pub use mapping::{PortMapping, Protocol};

/// Packets that the forwarder sends in a client's name bear this mark, and so do their connections.
pub const FORWARDED_MARK: u32 = 0x0200_0000;
/// What returns on such a connection bears this mark, which is a route to the forwarder.
pub const RETURNING_MARK: u32 = 0x0400_0000;
