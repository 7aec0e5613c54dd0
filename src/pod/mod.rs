//! The domain: pods and containers.

pub mod session;
