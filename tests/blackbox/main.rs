//! Black-box tests: a real `cricket serve`, started as an ordinary user, spoken to over its socket and with its own and
//! Kubernetes' command lines. A file here is a group of promises; `node/` is what they stand on.
//!
//! `scripts/test` builds what they need and runs them as an ordinary user. To run some of them by hand:
//! `scripts/test blackbox NAME`.

mod node;

mod bad_images;
mod bad_requests;
mod cancelled;
mod cni;
mod command_line;
mod containers;
mod crash;
mod crictl;
mod daemon_killed;
mod damaged_records;
mod debug_dump;
mod disk_full;
mod found_nodes;
mod handlers;
mod host_ports;
mod hostile_images;
mod hundred_pods;
mod image_soak;
mod images;
mod kubelet;
mod limits;
mod log_disk;
mod loopback_registries;
mod mounts;
mod network_ways;
mod options;
mod pod_network;
mod processes;
mod races;
mod scarce;
mod shutdown;
mod soak;
mod stats;
mod streams;
mod supervisor_killed;
mod upgrade;
mod user_namespaces;
