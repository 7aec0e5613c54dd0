//! Pod networks.
//!
//! [`Network`] is the one door, and the switch between what is behind it:
//!
//! * [`builtin`]: a bridge, a veth pair per pod, an address per pod and family, and masquerading, all over netlink: no
//!   plugin, no iptables, no nft. Everything of it happens in one thread that has joined the node's network namespace:
//!   set-ups are milliseconds, so they need no concurrency, and the daemon's other threads stay in the host's.
//!   It is started when a pod first needs it.
//!
//! Addresses are part of the pods' own records ([`PodNetwork`]); after a restart the domain hands them back with
//! [`Network::adopt`], so that none is given twice, and a removed pod's are free without further ado.

mod builtin;
mod cidr;
pub mod outbound;
mod pool;
pub mod ports;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::proto::cri;
use crate::store::PodId;
use crate::sys::process::ProcessId;

use builtin::BuiltinThread;

use ports::PortMapping;

pub use cidr::{Cidr, CidrError};

/// What went wrong with a pod's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused a step.
    #[error("pod network: cannot {action}: {source}")]
    Kernel {
        /// The step.
        action: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// No address is left.
    #[error(
        "pod network: every address of {0} is taken by a pod; remove pods or configure a larger range (network.pod_cidrs)"
    )]
    Exhausted(Cidr),
    /// The thread that does the work is gone.
    #[error("pod network: the network thread has ended; restart the daemon")]
    Ended,
}

impl NetworkError {
    fn kernel(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Kernel { action: action.into(), source }
    }
}

/// Where pods' networks are made.
#[derive(Debug)]
pub struct NetworkOptions {
    /// The node's network namespace.
    pub node: OwnedFd,
    /// Ranges of pod addresses: at most one of each family.
    pub cidrs: Vec<Cidr>,
    /// What one packet of a pod holds where no uplink of the node says another.
    pub mtu: Option<u32>,
    /// Host ports are forwarded from another network namespace, in their clients' names.
    pub forwarded: bool,
}

/// The network of one pod, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetwork {
    /// Inside the pod.
    pub interface: String,
    /// At the bridge.
    pub node_interface: String,
    /// One a family, the first is the pod's primary.
    pub addresses: Vec<IpAddr>,
    /// Of the interface inside; none: unknown, an earlier release made it.
    #[serde(default)]
    pub hardware_address: Option<[u8; 6]>,
}

/// A pod that is to be connected.
#[derive(Debug)]
pub struct PodRequest {
    /// Its id.
    pub id: PodId,
    /// Its network namespace.
    pub namespace: OwnedFd,
    /// A process that lives in that namespace for as long as the pod does: its supervisor.
    pub holder: ProcessId,
    /// As the client sent it.
    pub config: cri::PodSandboxConfig,
    /// Absolute, from the cgroup file system's root.
    pub cgroup: Option<PathBuf>,
    /// Its host ports.
    pub ports: Vec<PortMapping>,
}

/// The network of the node's pods. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: OwnedFd,
    mtu: Option<u32>,
    forwarded: bool,
    builtin: Mutex<BuiltinState>,
}

/// The built-in network, with what it is started with.
#[derive(Debug)]
struct BuiltinState {
    cidrs: Vec<Cidr>,
    running: Option<BuiltinThread>,
}

impl Network {
    /// Nothing is made before it is needed.
    pub fn new(options: NetworkOptions) -> Self {
        let NetworkOptions { node, cidrs, mtu, forwarded } = options;
        let builtin = Mutex::new(BuiltinState { cidrs, running: None });
        Self { shared: Arc::new(Shared { node, mtu, forwarded, builtin }) }
    }

    /// The built-in network, started unless it runs.
    async fn builtin(&self) -> Result<BuiltinThread, NetworkError> {
        let mut state = self.shared.builtin.lock().await;
        if let Some(running) = &state.running {
            return Ok(running.clone());
        }
        let Shared { node, mtu, forwarded, .. } = &*self.shared;
        let node = node.try_clone().map_err(NetworkError::kernel("duplicate the node's namespace"))?;
        let cidrs = state.cidrs.clone();
        let started = BuiltinThread::start(NetworkOptions { node, cidrs, mtu: *mtu, forwarded: *forwarded }).await?;
        Ok(state.running.insert(started).clone())
    }

    /// The built-in network if it runs.
    async fn running_builtin(&self) -> Option<BuiltinThread> {
        self.shared.builtin.lock().await.running.clone()
    }

    /// Why pods cannot be connected now; none when they can.
    pub async fn missing(&self) -> Option<String> {
        self.builtin().await.err().map(|error| error.to_string())
    }

    /// Gives the pod an interface `eth0`, addresses, default routes, and its host ports on the node's addresses. After an
    /// error nothing is left.
    pub async fn set_up(&self, request: PodRequest) -> Result<PodNetwork, NetworkError> {
        self.builtin().await?.set_up(&request.id, request.namespace, request.ports).await
    }

    /// Takes note of what a pod of an earlier daemon has.
    pub async fn adopt(&self, pod: &PodId, had: &PodNetwork, ports: Vec<PortMapping>) -> Result<(), NetworkError> {
        self.builtin().await?.adopt(pod, had, ports).await
    }

    /// All pods of an earlier daemon are adopted: what belongs to none of them is removed.
    pub async fn settle(&self) -> Result<(), NetworkError> {
        match self.running_builtin().await {
            Some(running) => running.settle().await,
            None => Ok(()),
        }
    }

    /// Removes the pod's interface and frees its addresses. What is gone already is fine.
    pub async fn tear_down(&self, pod: &PodId) -> Result<(), NetworkError> {
        self.builtin().await?.tear_down(pod).await
    }

    /// From now on new pods get addresses of `cidrs`; pods that run keep theirs.
    pub async fn change_ranges(&self, cidrs: Vec<Cidr>) -> Result<(), NetworkError> {
        if let Some(running) = self.running_builtin().await {
            running.change_ranges(cidrs.clone()).await?;
        }
        self.shared.builtin.lock().await.cidrs = cidrs;
        Ok(())
    }
}
