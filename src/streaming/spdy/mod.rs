//! SPDY/3.1 as kubelets speak it: a server that multiplexes streams over one connection.
//!
//! [`frame`] reads and writes frames, [`headers`] the compressed name/value blocks, [`connection`] owns the
//! streams. Flow control is that of the connection: the field's clients neither send nor honour window updates, so
//! a stream whose reader stalls holds its connection, never memory.

mod connection;
pub mod frame;
pub mod headers;

pub use connection::{Connection, IncomingStream, StreamSink};
