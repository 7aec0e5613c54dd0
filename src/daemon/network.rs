//! The pods' network and the node's way out, as far as this node can have them. What is missing ends nothing: pods on
//! the host's network run, and Status says why others do not.

use std::os::fd::{AsFd, OwnedFd};

use crate::config::Config;
use crate::cri::Facts;
use crate::network::cni::CniOptions;
use crate::network::outbound::{self, Outbound, OutboundOptions};
use crate::network::ports::{HostPorts, PortsOptions};
use crate::network::{Cidr, Network, NetworkOptions};
use crate::pod::PodNetworks;
use crate::rootless::{Node, NodeKind};

/// Below the state directory.
const RANGES: &str = "pod_ranges.json";

/// Below the root directory.
const ATTACHMENTS: &str = "cni";

/// See the module.
pub async fn start(facts: &Facts) -> PodNetworks {
    let (config, node) = (&facts.config, &facts.node);
    let ranges = config.state.join(RANGES);
    let kept = PodNetworks::kept_ranges(&ranges);
    let networks = PodNetworks::new(
        pod_network(config, node, kept),
        host_ports(config, node),
        way_out(config, node).await,
        ranges,
    );
    if let Some(why) = networks.missing().await {
        tracing::warn!("pods have no network: {why}");
    }
    networks
}

fn pod_network(config: &Config, node: &Node, kept: Option<Vec<String>>) -> Result<Network, String> {
    let cidrs_of_kubelet = kept.is_some();
    let cidrs = kept.as_ref().unwrap_or(&config.pod_cidrs).iter().map(|text| text.parse());
    let cidrs = cidrs.collect::<Result<Vec<Cidr>, _>>().map_err(|error| error.to_string())?;
    let cni = CniOptions {
        config_dir: config.cni_config_dir.clone(),
        plugin_dirs: config.cni_plugin_dirs.clone(),
        attachments: config.root.join(ATTACHMENTS),
        patience: config.cni_timeout,
    };
    let made = node.kind == NodeKind::Made;
    let options = NetworkOptions {
        node: network_of(node)?,
        name: config.network_name.clone(),
        cidrs,
        cidrs_of_kubelet,
        mtu: made.then_some(outbound::MTU),
        forwarded: made,
        cni,
    };
    Network::new(options).map_err(|error| error.to_string())
}

/// A found node, and root's, are where this process is.
fn host_ports(config: &Config, node: &Node) -> Option<HostPorts> {
    let namespace = match node.kind {
        NodeKind::Made => network_of(node).map(Some),
        NodeKind::Found | NodeKind::Root => Ok(None),
    };
    let started = namespace.and_then(|namespace| {
        let (state, executable, lookout) = (config.state.clone(), node.executable_path(), node.lookout.clone());
        HostPorts::start(PortsOptions { state, executable, node: namespace, lookout })
            .map_err(|error| error.to_string())
    });
    started.inspect_err(|why| tracing::warn!("host ports cannot be served: {why}")).ok()
}

/// A node that is not made has its way out already.
async fn way_out(config: &Config, node: &Node) -> Option<Outbound> {
    if node.kind != NodeKind::Made {
        return None;
    }
    let started = match network_of(node) {
        Ok(network) => {
            let (state, executable) = (config.state.clone(), node.executable_path());
            let host_loopback = config.host_loopback;
            let options = OutboundOptions { state, executable, network, driver: None, host_loopback };
            Outbound::ensure(options).await.map_err(|error| error.to_string())
        }
        Err(error) => Err(error),
    };
    started.inspect_err(|why| tracing::warn!("{why}")).ok()
}

fn network_of(node: &Node) -> Result<OwnedFd, String> {
    let copy = node.network.as_fd().try_clone_to_owned();
    copy.map_err(|error| format!("duplicating the node's network namespace: {error}"))
}
