//! Pod networks.
//!
//! [`Network`] is the one door, and the switch between what is behind it:
//!
//! * [`builtin`]: a bridge, a veth pair per pod, an address per pod and family, and masquerading, all over netlink: no
//!   plugin, no iptables, no nft. Everything of it happens in one thread that has joined the node's network namespace:
//!   set-ups are milliseconds, so they need no concurrency, and the daemon's other threads stay in the host's.
//!   It is started when a pod first needs it.
//! * [`cni`]: plugins, when the CNI directory has a configuration. It is read anew for each pod, so a change is seen at
//!   once; a pod is taken down by what connected it, whatever is configured by then.
//!
//! Addresses are part of the pods' own records ([`PodNetwork`]); after a restart the domain hands them back with
//! [`Network::adopt`], so that none is given twice, and a removed pod's are free without further ado.

mod builtin;
mod cidr;
pub mod cni;
pub mod outbound;
mod pool;
pub mod ports;

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::proto::cri;
use crate::store::PodId;
use crate::sys::process::ProcessId;

pub use builtin::{attempt, dismantle, joinable};

use builtin::{BuiltinOptions, BuiltinThread};
use cni::{Cni, CniError, CniOptions};

use ports::{Destination, PortMapping};

pub use cidr::{Cidr, CidrError};

/// Name of a pod's interface inside the pod.
const POD_INTERFACE: &str = "eth0";

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
    /// Two daemons in one network namespace.
    #[error(
        "pod network: {range} holds addresses of the bridge {bridge}, another daemon's in this network namespace; \
         name other ranges in network.pod_cidrs"
    )]
    Shared {
        /// Ours.
        range: Cidr,
        /// The other's.
        bridge: String,
    },
    /// Pods cannot have it on this node.
    #[error("pod network: the range {range} {why}: name another")]
    Range {
        /// Which.
        range: Cidr,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody made our user namespace and left us the network of another.
    #[error(
        "pod network: this network namespace belongs to another user namespace, so nothing can be made in it: start the daemon \
         with a network namespace of its own (rootlesskit --net=slirp4netns or --net=pasta, unshare --net), or give pods the \
         node's network"
    )]
    NotOurs,
    /// A plugin, or its configuration.
    #[error(transparent)]
    Cni(#[from] CniError),
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
    /// Tells the built-in network's bridge and tables from those of other daemons in the same namespace.
    pub name: String,
    /// Ranges of pod addresses: at most one of each family.
    pub cidrs: Vec<Cidr>,
    /// Whether a kubelet named them: then CNI plugins that ask for ranges are told too.
    pub cidrs_of_kubelet: bool,
    /// What one packet of a pod holds where no uplink of the node says another.
    pub mtu: Option<u32>,
    /// Host ports are forwarded from another network namespace, in their clients' names.
    pub forwarded: bool,
    /// For the plugins.
    pub cni: CniOptions,
}

/// The network of one pod, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetwork {
    /// Inside the pod.
    pub interface: String,
    /// At the bridge; empty where plugins did not tell it.
    pub node_interface: String,
    /// The first is the pod's primary. Of the built-in network one a family.
    pub addresses: Vec<IpAddr>,
    /// Of which the built-in network gave them. None: an earlier release did not note them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Cidr>,
    /// Of the interface inside; none: unknown, an earlier release made it.
    #[serde(default)]
    pub hardware_address: Option<[u8; 6]>,
    /// Name of the CNI network that made it; none: the built-in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<String>,
}

impl PodNetwork {
    /// For host ports.
    pub fn destination(&self) -> Destination {
        let (addresses, ranges) = (self.addresses.clone(), self.ranges.clone());
        Destination { addresses, ranges, answers_return: self.cni.is_none() }
    }
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
    name: String,
    mtu: Option<u32>,
    forwarded: bool,
    builtin: Mutex<BuiltinState>,
    cni: Cni,
}

/// The built-in network, with what it is started with.
#[derive(Debug)]
struct BuiltinState {
    cidrs: Vec<Cidr>,
    of_kubelet: bool,
    running: Option<BuiltinThread>,
}

impl Network {
    /// Nothing is made before it is needed.
    pub fn new(options: NetworkOptions) -> Result<Self, NetworkError> {
        let NetworkOptions { node, name, cidrs, cidrs_of_kubelet, mtu, forwarded, cni } = options;
        let copy = node.try_clone().map_err(NetworkError::kernel("duplicate the node's namespace"))?;
        let builtin = Mutex::new(BuiltinState { cidrs, of_kubelet: cidrs_of_kubelet, running: None });
        let cni = Cni::new(cni, copy);
        Ok(Self { shared: Arc::new(Shared { node, name, mtu, forwarded, builtin, cni }) })
    }

    /// The built-in network, started unless it runs.
    async fn builtin(&self) -> Result<BuiltinThread, NetworkError> {
        let mut state = self.shared.builtin.lock().await;
        if let Some(running) = &state.running {
            return Ok(running.clone());
        }
        let Shared { node, name, mtu, forwarded, .. } = &*self.shared;
        let node = node.try_clone().map_err(NetworkError::kernel("duplicate the node's namespace"))?;
        let (name, cidrs) = (name.clone(), state.cidrs.clone());
        let options = BuiltinOptions { node, name, cidrs, mtu: *mtu, forwarded: *forwarded };
        let started = BuiltinThread::start(options).await?;
        Ok(state.running.insert(started).clone())
    }

    /// The built-in network if it runs.
    async fn running_builtin(&self) -> Option<BuiltinThread> {
        self.shared.builtin.lock().await.running.clone()
    }

    /// Why pods cannot be connected now; none when they can.
    pub async fn missing(&self) -> Option<String> {
        let cni = &self.shared.cni;
        match cni.configured() {
            Ok(Some(list)) => cni.check_ready(&list).await.err(),
            Ok(None) => self.looked_after().await.err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// The built-in network runs, and has what it made.
    async fn looked_after(&self) -> Result<(), NetworkError> {
        self.builtin().await?.look_after().await
    }

    /// Gives the pod an interface `eth0`, addresses, routes and its host ports on the node's addresses, by the network
    /// that is configured now. After an error [`Network::tear_down`] takes away what is left.
    pub async fn set_up(&self, request: PodRequest) -> Result<PodNetwork, NetworkError> {
        match self.shared.cni.configured()? {
            Some(list) => {
                let ranges = self.ranges_of_kubelet().await;
                Ok(self.shared.cni.set_up(list, request, &ranges).await?)
            }
            None => self.builtin().await?.set_up(&request.id, request.namespace, request.ports).await,
        }
    }

    async fn ranges_of_kubelet(&self) -> Vec<Cidr> {
        let state = self.shared.builtin.lock().await;
        if state.of_kubelet { state.cidrs.clone() } else { Vec::new() }
    }

    /// Takes note of what a pod of an earlier daemon has of the built-in network.
    pub async fn adopt(&self, pod: &PodId, network: &PodNetwork, ports: Vec<PortMapping>) -> Result<(), NetworkError> {
        self.builtin().await?.adopt(pod, network, ports).await
    }

    /// Takes note of a pod of an earlier daemon that plugins connected.
    pub fn adopt_cni(&self, pod: &PodId, namespace: OwnedFd, holder: ProcessId) {
        self.shared.cni.adopt(pod, namespace, holder);
    }

    /// All pods of an earlier daemon are adopted: what belongs neither to them nor to `others`, which run and are not
    /// ours to look after, is removed.
    pub async fn settle(&self, others: Vec<PodId>) -> Result<(), NetworkError> {
        match self.running_builtin().await {
            Some(running) => running.settle(others).await,
            None => Ok(()),
        }
    }

    /// Removes the pod's interface and frees its addresses, by whatever gave it them. What is gone already is fine.
    pub async fn tear_down(&self, pod: &PodId) -> Result<(), NetworkError> {
        if self.shared.cni.tear_down(pod).await? {
            return Ok(());
        }
        // Without a pod that was adopted or set up, it has nothing of this pod's.
        match self.running_builtin().await {
            Some(running) => running.tear_down(pod).await,
            None => Ok(()),
        }
    }

    /// That what plugins made for the pod is as they made it; of the built-in network nothing is looked at.
    pub async fn check(&self, pod: &PodId) -> Result<(), NetworkError> {
        Ok(self.shared.cni.check(pod).await?)
    }

    /// After a start, when all pods that there are (`known`) are adopted: what others left is taken away, and what
    /// these have is looked at.
    pub async fn collect_garbage(&self, known: &HashSet<PodId>) {
        self.shared.cni.collect_garbage(known).await;
        self.shared.cni.check_all().await;
    }

    /// From now on new pods get addresses of `cidrs`; pods that run keep theirs. Ranges that cannot be pods' are
    /// refused, and nothing is changed.
    pub async fn change_ranges(&self, cidrs: Vec<Cidr>) -> Result<(), NetworkError> {
        if let Some((range, what)) = cidrs.iter().find_map(|range| Some((*range, range.unusable()?))) {
            return Err(NetworkError::Range { range, why: format!("has {what}") });
        }
        // Plugins' own interfaces have addresses of these ranges: then the bridge is not for new pods.
        let is_for_plugins = !matches!(self.shared.cni.configured(), Ok(None));
        if let Some(running) = self.running_builtin().await {
            match running.change_ranges(cidrs.clone()).await {
                Err(NetworkError::Range { .. } | NetworkError::Shared { .. }) if is_for_plugins => {}
                other => other?,
            }
        }
        let mut state = self.shared.builtin.lock().await;
        (state.cidrs, state.of_kubelet) = (cidrs, true);
        Ok(())
    }
}
