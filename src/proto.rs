//! The wire contracts, generated from `proto/` at build time: CRI, our own service, the supervisor's protocol.

#![allow(missing_docs, clippy::all)]

pub mod lists;

/// CRI v1, as kubelets and crictl speak it.
pub mod cri {
    pub use super::lists::{ListContainersResponse, ListPodSandboxResponse};
    tonic::include_proto!("runtime.v1");
}

/// What our own command line needs beyond CRI.
pub mod cricket {
    tonic::include_proto!("cricket.v1");
}

/// Between daemon, template and supervisors.
pub mod supervisor {
    tonic::include_proto!("cricket.supervisor.v1");
}
