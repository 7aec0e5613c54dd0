//! What pods have of the node's network: an interface and addresses each, where the node has a network for them.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::executor::client::Supervisor;
use crate::network::cni::CniError;
use crate::network::outbound::{Outbound, Resolvers};
use crate::network::ports::{HostPorts, PodPorts, PortMapping, PortsError};
use crate::network::{Cidr, Network, NetworkError, PodNetwork, PodRequest};
use crate::pod::context::{blocking, pod_modes};
use crate::pod::error::{PodError, PodErrorKind, quoted};
use crate::pod::host_ports;
use crate::pod::record::PodRecord;
use crate::proto::{cri, supervisor as wire};
use crate::store::{self, PodId};
use crate::sys::kernel;
use crate::sys::namespace::Namespace;
use crate::sys::process::ProcessId;

/// Layout of the file of ranges.
const RANGES_VERSION: u32 = 1;

/// Between two attempts to take down the network of a pod that is no more: doubled from the first to the second.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// `STATE/pod_ranges.json`: the kubelet's word, which it does not repeat to a restarted daemon.
#[derive(Debug, Serialize, Deserialize)]
struct Ranges {
    version: u32,
    cidrs: Vec<String>,
}

/// The network that pods are given.
#[derive(Debug)]
pub struct PodNetworks {
    network: Result<Network, String>,
    ports: Option<HostPorts>,
    outbound: Option<Outbound>,
    ranges: PathBuf,
}

impl PodNetworks {
    /// `network`, or why there is none; what serves host ports; `outbound` where the node needs a way out; the file in
    /// which ranges that a kubelet names are kept.
    pub fn new(
        network: Result<Network, String>,
        ports: Option<HostPorts>,
        outbound: Option<Outbound>,
        ranges: PathBuf,
    ) -> Self {
        Self { network, ports, outbound, ranges }
    }

    /// The ranges that a kubelet named since the machine was started.
    pub fn kept_ranges(file: &Path) -> Option<Vec<String>> {
        match store::read_known::<Ranges>(file, RANGES_VERSION) {
            Ok(kept) => Some(kept.cidrs),
            Err(error) if error.is_not_found() => None,
            Err(error) => {
                tracing::error!(%error, "the ranges that the kubelet named are not known: those of the configuration are used");
                None
            }
        }
    }

    /// Why pods have no network now.
    pub async fn missing(&self) -> Option<String> {
        match &self.network {
            Ok(network) => network.missing().await,
            Err(why) => Some(why.clone()),
        }
    }

    /// Where pods reach the host's resolvers when these listen on the host's loopback.
    pub(crate) fn resolvers(&self) -> Option<Resolvers> {
        self.outbound.as_ref().map(|outbound| outbound.driver().resolvers())
    }

    /// The host's resolv.conf may name another resolver now.
    pub(crate) fn follow_resolver(&self) {
        if let Some(outbound) = &self.outbound {
            outbound.follow_resolver();
        }
    }

    /// That a pod of its own network can be run.
    pub(crate) fn check(&self, config: &cri::PodSandboxConfig) -> Result<(), PodError> {
        host_ports::of(config)?;
        match (has_own(config), &self.network) {
            (true, Err(why)) => Err(PodError::new(
                PodErrorKind::Unavailable,
                format!("this node has no network for pods ({why}); pods on the host's network can be run"),
            )),
            _ => Ok(()),
        }
    }

    /// Connects a pod that has just come up; none where it is on the node's network.
    pub(crate) async fn set_up(
        &self,
        pod: &PodRecord,
        supervisor: &Supervisor,
    ) -> Result<Option<PodNetwork>, PodError> {
        self.check(&pod.config)?;
        let Some(network) = self.network.as_ref().ok().filter(|_| has_own(&pod.config)) else { return Ok(None) };
        let (namespace, holder) = namespace_of(supervisor).await?;
        let ports = host_ports::of(&pod.config)?;
        // First, because a port that is taken is known before anything is made.
        self.reserve(pod, &ports).await?;
        let (id, config, cgroup) = (pod.id.clone(), pod.config.clone(), pod.cgroup.clone());
        let made = network.set_up(PodRequest { id, namespace, holder, config, cgroup, ports }).await?;
        self.publish(pod, &made).await?;
        Ok(Some(made))
    }

    async fn reserve(&self, pod: &PodRecord, mappings: &[PortMapping]) -> Result<(), PodError> {
        match &self.ports {
            _ if mappings.is_empty() => Ok(()),
            Some(ports) => Ok(ports.reserve(&pod.id, of_pod(pod, mappings.to_vec())).await?),
            None => Err(PodError::new(PodErrorKind::Unavailable, "host ports cannot be served: see the daemon's log")),
        }
    }

    async fn publish(&self, pod: &PodRecord, made: &PodNetwork) -> Result<(), PodError> {
        match &self.ports {
            Some(ports) => Ok(ports.publish(&pod.id, made.destination()).await?),
            None => Ok(()),
        }
    }

    /// Takes note of what a pod of an earlier daemon has. After an error its addresses would be given again, and its
    /// interface be taken for nobody's.
    pub(crate) async fn adopt(&self, pod: &PodRecord, supervisor: &Supervisor) -> Result<(), PodError> {
        let (Ok(network), Some(had)) = (&self.network, &pod.network) else { return Ok(()) };
        let mappings = host_ports::of(&pod.config).unwrap_or_else(|error| {
            tracing::error!(pod = %pod.id, %error, "a pod's host ports are not served");
            Vec::new()
        });
        if had.cni.is_none() {
            network.adopt(&pod.id, had, mappings.clone()).await?;
        } else {
            let (namespace, holder) = namespace_of(supervisor).await?;
            network.adopt_cni(&pod.id, namespace, holder);
        }
        if let Some(ports) = self.ports.as_ref().filter(|_| !mappings.is_empty())
            && let Err(error) = ports.adopt(&pod.id, of_pod(pod, mappings), had.destination()).await
        {
            tracing::error!(pod = %pod.id, %error, "a pod's host ports are not served");
        }
        Ok(())
    }

    /// All pods of an earlier daemon are adopted: what is left of pods that are none of `others` either is removed.
    pub(crate) async fn settle(&self, others: Vec<PodId>) {
        if let Ok(network) = &self.network
            && let Err(error) = network.settle(others).await
        {
            tracing::error!(%error, "what earlier pods left of their networks was not removed");
        }
        if let Some(ports) = &self.ports
            && let Err(error) = ports.settle().await
        {
            tracing::error!(%error, "host ports may not be served");
        }
    }

    /// After a start: takes away what pods left that are none of `known`, which are adopted. It goes on by itself.
    pub(crate) fn collect_garbage(&self, known: HashSet<PodId>) {
        if let Ok(network) = self.network.clone() {
            tokio::spawn(async move { network.collect_garbage(&known).await });
        }
    }

    /// Takes everything from a pod that has ended; also when it has nothing. Where it fails, the pod has something that
    /// others may need (an address that a plugin keeps for it), and it is to be tried again.
    pub(crate) async fn tear_down(&self, pod: &PodId) -> Result<(), PodError> {
        if let Some(ports) = &self.ports
            && let Err(error) = ports.release(pod).await
        {
            tracing::warn!(%pod, %error, "a pod's host ports were not wholly freed");
        }
        match &self.network {
            Ok(network) => Ok(network.tear_down(pod).await?),
            Err(_) => Ok(()),
        }
    }

    /// As [`PodNetworks::tear_down`], for a pod that is no more and that nobody will ask for: where it fails it is
    /// tried again, by this daemon and by later ones.
    pub(crate) async fn abandon(&self, pod: &PodId) {
        let Err(error) = self.tear_down(pod).await else { return };
        tracing::warn!(%pod, %error, "the network of a pod that is no more was not wholly taken down: it is tried again");
        let Ok(network) = self.network.clone() else { return };
        let pod = pod.clone();
        tokio::spawn(async move {
            let mut delay = RETRY_DELAYS.0;
            loop {
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY_DELAYS.1);
                match network.tear_down(&pod).await {
                    Ok(()) => return tracing::info!(%pod, "the network of a pod that is no more was taken down"),
                    Err(error) => tracing::warn!(%pod, %error, "a pod's network still cannot be taken down"),
                }
            }
        });
    }

    /// See [`crate::pod::Pods::change_pod_ranges`].
    pub(crate) async fn change_ranges(&self, text: &str) -> Result<(), PodError> {
        let cidrs = parse(text)?;
        let kept = Ranges { version: RANGES_VERSION, cidrs: cidrs.iter().map(Cidr::to_string).collect() };
        if let Ok(network) = &self.network {
            network.change_ranges(cidrs).await?;
        }
        let file = self.ranges.clone();
        blocking(move || Ok(store::write(&file, &kept)?)).await
    }
}

/// Ranges of pod addresses, at most one of each family, separated by commas.
fn parse(text: &str) -> Result<Vec<Cidr>, PodError> {
    let parsed: Result<Vec<Cidr>, _> = text.split(',').map(|word| word.trim().parse::<Cidr>()).collect();
    let cidrs = parsed.map_err(|e| PodError::invalid(format!("pod_cidr: {e}")))?;
    let of_one_family = |v4: bool| cidrs.iter().filter(|c| c.base().is_ipv4() == v4).count();
    match of_one_family(true) > 1 || of_one_family(false) > 1 {
        true => Err(PodError::invalid(format!("pod_cidr: {:?} has two ranges of one family", quoted(text)))),
        false => Ok(cidrs),
    }
}

/// The pod's network namespace, and the supervisor as a process that lives in it.
async fn namespace_of(supervisor: &Supervisor) -> Result<(OwnedFd, ProcessId), PodError> {
    let opened = Namespace::Network.open(supervisor.pid());
    let namespace = opened.map_err(|e| PodError::io("open the pod's network namespace", &e))?;
    let holder = ProcessId::of(supervisor.pid()).map_err(|e| PodError::io("look at the pod's supervisor", &e))?;
    // It answers after the number was used, so the number was its own.
    supervisor.network().await?;
    Ok((namespace, holder))
}

fn has_own(config: &cri::PodSandboxConfig) -> bool {
    pod_modes(config).network != wire::NamespaceMode::Node
}

fn of_pod(pod: &PodRecord, mappings: Vec<PortMapping>) -> PodPorts {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    PodPorts { whom: format!("{}/{}", metadata.namespace, metadata.name), mappings }
}

impl From<PortsError> for PodError {
    fn from(error: PortsError) -> Self {
        let kind = match &error {
            PortsError::Taken { .. }
            | PortsError::Low { .. }
            | PortsError::NoAddress { .. }
            | PortsError::NotServed { .. } => PodErrorKind::FailedPrecondition,
            PortsError::Socket { .. } | PortsError::Forwarder { .. } | PortsError::Unanswered(_) => {
                PodErrorKind::Internal
            }
            PortsError::Ended => PodErrorKind::Unavailable,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<NetworkError> for PodError {
    fn from(error: NetworkError) -> Self {
        let kind = match &error {
            NetworkError::Cni(error) if error.is_temporary() => PodErrorKind::Unavailable,
            NetworkError::Cni(CniError::Deadline { .. }) => PodErrorKind::DeadlineExceeded,
            NetworkError::Cni(CniError::Request(_)) | NetworkError::Range { .. } => PodErrorKind::Invalid,
            NetworkError::Kernel { source, .. } if kernel::is_exhausted(source) => PodErrorKind::ResourceExhausted,
            NetworkError::Kernel { .. } | NetworkError::Cni(_) => PodErrorKind::Internal,
            NetworkError::Exhausted(_) => PodErrorKind::ResourceExhausted,
            NetworkError::Shared { .. } | NetworkError::NotOurs | NetworkError::Ended => PodErrorKind::Unavailable,
        };
        Self::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelets_ranges_are_one_of_each_family() {
        let read = |text| parse(text).map(|cidrs| cidrs.iter().map(Cidr::to_string).collect::<Vec<_>>());
        assert_eq!(read("10.1.2.0/24").expect("a range"), ["10.1.2.0/24"]);
        assert_eq!(read("10.1.2.0/24, fd00:1::/64").expect("two ranges"), ["10.1.2.0/24", "fd00:1::/64"]);
        for bad in ["", "x", "10.1.2.0", "10.1.2.0/24,", "10.1.2.0/24,10.2.0.0/24"] {
            assert_eq!(read(bad).expect_err("refused").kind, PodErrorKind::Invalid, "{bad:?}");
        }
    }
}
