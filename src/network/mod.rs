//! Pod networks.
//!
//! Everything that touches the node's network happens in one thread that has joined the node's network namespace
//! ([`Network`]): set-ups are milliseconds, so they need no concurrency, and the daemon's other threads stay in the
//! host's. [`builtin`] is a bridge, a veth pair per pod, an address per pod and family, and masquerading, all over
//! netlink: no plugin, no iptables, no nft.
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
use std::sync::mpsc;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::store::PodId;

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

type Job = Box<dyn FnOnce(&mut builtin::Builtin) + Send>;

/// The network of the node's pods. Cheap to clone; calls are carried out one after the other.
#[derive(Debug, Clone)]
pub struct Network {
    jobs: mpsc::Sender<Job>,
}

impl Network {
    /// Makes the bridge and the rules where they are not there yet.
    pub async fn start(options: NetworkOptions) -> Result<Self, NetworkError> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (started, outcome) = oneshot::channel();
        std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || match builtin::Builtin::start(options) {
                Ok(mut network) => {
                    let _ = started.send(Ok(()));
                    while let Ok(job) = todo.recv() {
                        job(&mut network);
                    }
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            })
            .map_err(NetworkError::kernel("start the network thread"))?;
        outcome.await.map_err(|_| NetworkError::Ended)??;
        Ok(Self { jobs })
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut builtin::Builtin) -> T + Send + 'static,
    ) -> Result<T, NetworkError> {
        let (done, outcome) = oneshot::channel();
        let job: Job = Box::new(move |network| {
            let _ = done.send(job(network));
        });
        self.jobs.send(job).map_err(|_| NetworkError::Ended)?;
        outcome.await.map_err(|_| NetworkError::Ended)
    }

    /// Gives the pod an interface `eth0` in `namespace`, addresses, default routes, and its host ports on the node's
    /// addresses. After an error nothing is left.
    pub async fn set_up(
        &self,
        pod: &PodId,
        namespace: OwnedFd,
        ports: Vec<PortMapping>,
    ) -> Result<PodNetwork, NetworkError> {
        let pod = pod.clone();
        self.run(move |network| network.set_up(&pod, &namespace, &ports)).await?
    }

    /// Takes note of what a pod of an earlier daemon has.
    pub async fn adopt(&self, pod: &PodId, had: &PodNetwork, ports: Vec<PortMapping>) -> Result<(), NetworkError> {
        let (pod, had) = (pod.clone(), had.clone());
        self.run(move |network| network.adopt(&pod, &had, &ports)).await
    }

    /// All pods of an earlier daemon are adopted: what belongs to none of them is removed.
    pub async fn settle(&self) -> Result<(), NetworkError> {
        self.run(move |network| network.settle()).await?
    }

    /// Removes the pod's interface and frees its addresses. What is gone already is fine.
    pub async fn tear_down(&self, pod: &PodId) -> Result<(), NetworkError> {
        let pod = pod.clone();
        self.run(move |network| network.tear_down(&pod)).await?
    }

    /// From now on new pods get addresses of `cidrs`; pods that run keep theirs.
    pub async fn change_ranges(&self, cidrs: Vec<Cidr>) -> Result<(), NetworkError> {
        self.run(move |network| network.change_ranges(cidrs)).await?
    }
}
