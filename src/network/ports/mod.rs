//! Host ports: what arrives at a port of the host goes to a pod.
//!
//! ```text
//! to an address of the node     nftables, before any socket (network::builtin): the pod sees who it is from
//! to a loopback address, or     listening sockets, in the host's and the node's network namespace, held by the
//!   to the host of a made node  forwarder, a process of its own: in the client's name where that can be done
//! ```
//!
//! The sockets are made by the daemon at RunPodSandbox, so a port that is taken is an error there, and then handed to
//! the forwarder, which outlives the daemon. Which ports a pod has stands in its record; a restarted daemon compares
//! what the forwarder has with its records ([`HostPorts::settle`]). The forwarder does not carry SCTP: a port that only
//! it could serve is refused.

pub mod forwarder;
mod holder;
mod mapping;
mod process;
mod sctp;
mod sockets;
mod table;
mod wire;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use tokio::sync::oneshot;

pub use mapping::{PortMapping, Protocol};
pub use process::{DOOR, running, stop};

use super::Cidr;
use crate::store::PodId;
use crate::sys::lookout::Lookout;
use table::Ports;

/// Packets that the forwarder sends in a client's name bear this mark, and so do their connections.
pub const FORWARDED_MARK: u32 = 0x0200_0000;
/// What returns on such a connection bears this mark, which is a route to the forwarder.
pub const RETURNING_MARK: u32 = 0x0400_0000;

/// What went wrong with host ports.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// Somebody has it.
    #[error("host port {port} is taken by {holder}: end that, or choose another port")]
    Taken {
        /// Which port.
        port: PortMapping,
        /// Who has it.
        holder: String,
    },
    /// Not for ordinary users.
    #[error(
        "host port {port} is below those that an ordinary user may have: choose another port, or: sudo sysctl net.ipv4.ip_unprivileged_port_start={number}"
    )]
    Low {
        /// Which port.
        port: PortMapping,
        /// Its number.
        number: u16,
    },
    /// Neither the host nor the node has the address.
    #[error("host port {port}: there is no such address on this host")]
    NoAddress {
        /// Which port.
        port: PortMapping,
    },
    /// Nothing here carries it.
    #[error("host port {port}: SCTP cannot be served {why}")]
    NotServed {
        /// Which port.
        port: PortMapping,
        /// Where, and what to do.
        why: &'static str,
    },
    /// The kernel refused a socket.
    #[error("host port {port}: no socket on {place}: {source}")]
    Socket {
        /// Which port.
        port: PortMapping,
        /// Host or node.
        place: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The forwarder.
    #[error("host ports: the forwarder cannot be {action}: {source}; its log is STATE/forwarder.log")]
    Forwarder {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The forwarder, which was ended for it.
    #[error("host ports: the forwarder does not answer ({0}) and was ended: another takes its place")]
    Unanswered(#[source] io::Error),
    /// The thread that does the work is gone.
    #[error("host ports: the thread that serves them has ended; restart the daemon")]
    Ended,
}

/// Where host ports are served.
#[derive(Debug)]
pub struct PortsOptions {
    /// The state directory.
    pub state: PathBuf,
    /// By which a child of ours executes this program.
    pub executable: PathBuf,
    /// The node's network namespace, where it is not this process's.
    pub node: Option<OwnedFd>,
    /// Who looks into the user's processes where this one may not.
    pub lookout: Option<Arc<Lookout>>,
}

/// A pod's host ports.
#[derive(Debug, Clone)]
pub struct PodPorts {
    /// `default/web`, for messages.
    pub whom: String,
    /// What it asks for.
    pub mappings: Vec<PortMapping>,
}

/// Where a pod is reached.
#[derive(Debug, Clone, Default)]
pub struct Destination {
    /// At most one of each family is used.
    pub addresses: Vec<IpAddr>,
    /// Whether the node's rules bring what the pod answers back to the forwarder, so that it can dial in a client's
    /// name: those of the built-in network do, plugins' do not.
    pub answers_return: bool,
    /// Of which these addresses are: who has one of them is the pod's neighbour.
    pub ranges: Vec<Cidr>,
}

type Job = Box<dyn FnOnce(&mut Ports) + Send>;

/// The host ports of this node's pods. Cheap to clone; calls are carried out one after the other.
#[derive(Debug, Clone)]
pub struct HostPorts {
    jobs: Arc<Jobs>,
    /// Pods that have some, or may: the others wait for nobody.
    pods: Arc<Mutex<BTreeSet<PodId>>>,
}

/// The way to the thread, which ends with the last of its users; the forwarder stays.
#[derive(Debug)]
struct Jobs(mpsc::Sender<Job>);

impl Drop for Jobs {
    fn drop(&mut self) {
        let _ = self.0.send(Box::new(Ports::close));
    }
}

impl HostPorts {
    /// Finds the forwarder that runs; one is started when it is needed.
    pub fn start(options: PortsOptions) -> io::Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let again = jobs.clone();
        std::thread::Builder::new().name("ports".to_owned()).spawn(move || {
            let mut ports = Ports::new(options, again);
            while !ports.is_closed()
                && let Ok(job) = todo.recv()
            {
                job(&mut ports);
            }
        })?;
        Ok(Self { jobs: Arc::new(Jobs(jobs)), pods: Arc::default() })
    }

    fn pods(&self) -> MutexGuard<'_, BTreeSet<PodId>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Ports) -> T + Send + 'static,
    ) -> Result<T, PortsError> {
        let (done, outcome) = oneshot::channel();
        let job: Job = Box::new(move |ports| {
            let _ = done.send(job(ports));
        });
        self.jobs.0.send(job).map_err(|_| PortsError::Ended)?;
        outcome.await.map_err(|_| PortsError::Ended)
    }

    /// Takes all of the pod's ports, or none. Clients that come wait until [`HostPorts::publish`].
    pub async fn reserve(&self, pod: &PodId, ports: PodPorts) -> Result<(), PortsError> {
        self.pods().insert(pod.clone());
        let pod = pod.clone();
        self.run(move |table| table.reserve(&pod, ports)).await?
    }

    /// From now on clients reach the pod.
    pub async fn publish(&self, pod: &PodId, destination: Destination) -> Result<(), PortsError> {
        if !self.pods().contains(pod) {
            return Ok(());
        }
        let pod = pod.clone();
        self.run(move |table| table.publish(&pod, destination)).await?
    }

    /// Ends the pod's connections and frees its ports. What is gone already is fine.
    pub async fn release(&self, pod: &PodId) -> Result<(), PortsError> {
        if !self.pods().contains(pod) {
            return Ok(());
        }
        let released = pod.clone();
        self.run(move |table| table.release(&released)).await??;
        self.pods().remove(pod);
        Ok(())
    }

    /// Takes note of what a pod of an earlier daemon has.
    pub async fn adopt(&self, pod: &PodId, ports: PodPorts, destination: Destination) -> Result<(), PortsError> {
        self.pods().insert(pod.clone());
        let pod = pod.clone();
        self.run(move |table| table.adopt(&pod, ports, destination)).await
    }

    /// All pods of an earlier daemon are adopted: what the forwarder has of others is freed, what it lacks is taken.
    pub async fn settle(&self) -> Result<(), PortsError> {
        self.run(Ports::settle).await?
    }
}
