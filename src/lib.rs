//! cricket: a container runtime for Kubernetes in one static binary. This file is the map.
//!
//! ```text
//! main -> cli -> daemon -> { cri, streaming, metrics } -> pod -> { image, executor, network, rootless }
//!                                                             -> { store, config } -> { sys, proto }
//! ```
//!
//! The one-way rule: a module names only what stands right of it; modules inside one pair of braces do not name
//! each other. `tests/style.rs` reads the `use crate::` lines and holds the tree to it.

/// The command line: one file a command, everything that people type.
pub mod cli;
/// TOML as typed by the user, turned once into what the code may rely on.
pub mod config;
/// gRPC in, gRPC out: a file per RPC; no system call, no path.
pub mod cri;
/// Wiring, start order, recovery, shutdown.
pub mod daemon;
/// The image that travels in the binary, for a first run without a registry.
pub mod demo;
/// How the daemon speaks to a pod's supervisor, and (`supervisor/`) that other process itself.
pub mod executor;
/// References, registries, unpacking, layers, snapshots.
pub mod image;
/// CRI metrics and Prometheus.
pub mod metrics;
/// Pod networks: built in, CNI, ports, the way out.
pub mod network;
/// The domain: pods and containers, their states, one driver task per pod, the only author of an OCI spec.
pub mod pod;
/// Generated wire types.
pub mod proto;
/// The node's namespaces: made, found or the host's; ids, cgroup delegation, what `check` probes.
pub mod rootless;
/// Records that survive a restart, and the ids that name them.
pub mod store;
/// Exec, attach and port-forward over SPDY and WebSocket.
pub mod streaming;
/// The only unsafe code: descriptors, mounts, namespaces, processes, terminals.
pub mod sys;
