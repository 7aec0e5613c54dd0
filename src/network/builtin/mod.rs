//! The built-in network: a bridge in the node, a veth pair per pod.

mod connections;
mod nftables;
mod ranges;
mod route;
mod rules;
mod stand_in;
mod thread;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};

use crate::store::PodId;
use crate::sys::loopback;
use crate::sys::namespace::Namespace;

use super::pool::Pool;
use super::ports::{PortMapping, Protocol, RETURNING_MARK};
use super::{Cidr, NetworkError, POD_INTERFACE, PodNetwork};

pub use route::RouteSocket;
pub use stand_in::stand_in;
pub use thread::BuiltinThread;

use route::Ends;
use rules::{PodRules, Rules};

/// With the network's name before it, the bridge's.
const BRIDGE_NUMBER: char = '0';

/// Begins the name of every daemon's network.
const NETWORK_PREFIX: &str = "cricket";

/// Digits of the pod's id in the name of the interface at the bridge: with the prefix, what the kernel allows.
const NAME_DIGITS: usize = 13;

/// Begins the name of each pod's interface at the bridge.
const NAME_PREFIX: &str = "ck";

/// First bytes of our MAC addresses, of the locally administered kind; an IPv4 address follows, so that a neighbour's
/// memory of an address is right for the next pod that has it.
const MAC_PREFIX: [u8; 2] = [0x0a, 0x58];

/// Where what is marked as returning to the forwarder is looked up: everything there is local.
const RETURNING_TABLE: u32 = 0x434b;

/// Lives in the network thread, in the node's network namespace.
#[derive(Debug)]
pub struct Builtin {
    node: OwnedFd,
    route: RouteSocket,
    bridge: Bridge,
    cidrs: Vec<Cidr>,
    pool: Pool,
    rules: Rules,
    pods: HashMap<PodId, PodRules>,
    /// Of pods' interfaces where no uplink says another.
    mtu: Option<u32>,
}

/// Where the pods meet.
#[derive(Debug)]
struct Bridge {
    name: String,
    index: u32,
    /// Pods keep it in mind: a bridge that takes its place has it too.
    hardware_address: Option<[u8; 6]>,
}

fn bridge_of(name: &str) -> String {
    format!("{name}{BRIDGE_NUMBER}")
}

fn node_interface(pod: &PodId) -> String {
    format!("{NAME_PREFIX}{}", &pod.as_str()[..NAME_DIGITS])
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// Joins a network namespace with this thread, which may be in it already: the kernel asks for the same rights as when
/// things are made in it.
pub fn joinable(namespace: &OwnedFd) -> Result<(), NetworkError> {
    enter(namespace).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => NetworkError::NotOurs,
        _ => NetworkError::kernel("join the node's network namespace")(error),
    })
}

/// Makes bridge and rules of a network in this thread's network namespace, which is thrown away thereafter.
pub fn attempt(cidrs: Vec<Cidr>) -> Result<(), NetworkError> {
    let node = Namespace::Network.open_own().map_err(NetworkError::kernel("open our network namespace"))?;
    loopback::up().map_err(NetworkError::kernel("bring the loopback interface up"))?;
    let options = BuiltinOptions { node, name: NETWORK_PREFIX.to_owned(), cidrs, mtu: None, forwarded: true };
    Builtin::start(options).map(drop)
}

/// Of the interface that has these addresses.
fn hardware_address(addresses: &[IpAddr]) -> Option<[u8; 6]> {
    let end = match addresses.first()? {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => *address.octets().last_chunk()?,
    };
    Some([MAC_PREFIX[0], MAC_PREFIX[1], end[0], end[1], end[2], end[3]])
}

/// What it is started with; the meaning is that of [`super::NetworkOptions`].
#[derive(Debug)]
pub struct BuiltinOptions {
    pub node: OwnedFd,
    pub name: String,
    pub cidrs: Vec<Cidr>,
    pub mtu: Option<u32>,
    pub forwarded: bool,
}

impl Builtin {
    /// Joins the node's network namespace with this thread, for good.
    pub fn start(options: BuiltinOptions) -> Result<Self, NetworkError> {
        let BuiltinOptions { node, name, cidrs, mtu, forwarded } = options;
        joinable(&node)?;
        let mut route = RouteSocket::open().map_err(NetworkError::kernel("open a netlink socket"))?;
        let own = cidrs.first().and_then(|cidr| hardware_address(&[cidr.gateway()]));
        let bridge = bridge_of(&name);
        let made = route.ensure_bridge(&bridge, own);
        let index = made.map_err(NetworkError::kernel(format!("make the bridge {bridge}")))?;
        let (rules, pods) = (Rules::new(&name, &bridge), HashMap::new());
        let bridge = Bridge { name: bridge, index, hardware_address: own };
        let mut network = Self { node, route, bridge, cidrs: Vec::new(), pool: Pool::default(), rules, pods, mtu };
        network.forward()?;
        if forwarded {
            let routed = network.route.local_by_mark(RETURNING_MARK, RETURNING_TABLE);
            routed.map_err(NetworkError::kernel("route what returns to the forwarder of host ports"))?;
        }
        network.begin_with(cidrs)?;
        Ok(network)
    }

    /// The kernel's switches for routing between pods and the rest of the world.
    fn forward(&self) -> Result<(), NetworkError> {
        for (name, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
            let path = format!("/proc/sys/net/{name}");
            let is_set = std::fs::read_to_string(&path).is_ok_and(|v| v.trim() == value);
            // A machine without IPv6 has no such switch.
            if !is_set && std::path::Path::new(&path).exists() {
                std::fs::write(&path, value).map_err(NetworkError::kernel(format!("write {value} to {path}")))?;
            }
        }
        Ok(())
    }

    /// Gives the pod an interface `eth0` in `namespace`, addresses, default routes, and its host ports on the node's
    /// addresses. After an error nothing is left.
    pub fn set_up(
        &mut self,
        pod: &PodId,
        namespace: &OwnedFd,
        ports: &[PortMapping],
    ) -> Result<PodNetwork, NetworkError> {
        let addresses = self.pool.take(pod, &self.cidrs)?;
        let hardware_address = hardware_address(&addresses);
        let interface = node_interface(pod);
        let (ports, ranges) = (ports.to_vec(), self.cidrs.clone());
        let rules = PodRules { interface, hardware_address, addresses: addresses.clone(), ports, ranges };
        let mut result = self.connect(pod, namespace, &rules);
        if result.is_err() && self.has_lost_bridge() {
            result = self.restore().and_then(|()| self.connect(pod, namespace, &rules));
        }
        if result.is_err() {
            let _ = self.tear_down(pod);
        }
        result?;
        let PodRules { interface: node_interface, ranges, .. } = rules;
        let interface = POD_INTERFACE.to_owned();
        Ok(PodNetwork { interface, node_interface, addresses, ranges, hardware_address, cni: None })
    }

    fn connect(&mut self, pod: &PodId, namespace: &OwnedFd, rules: &PodRules) -> Result<(), NetworkError> {
        // The rules are there before the interface is.
        self.rules.add(pod, rules).map_err(rules_failed)?;
        self.pods.insert(pod.clone(), rules.clone());
        forget_before(rules);
        let mtu = self.route.uplink_mtu(self.bridge.index).ok().flatten().or(self.mtu);
        let name = &rules.interface;
        let ends = Ends {
            name,
            bridge: self.bridge.index,
            inside: POD_INTERFACE,
            hardware_address: rules.hardware_address,
            mtu,
        };
        let made = self.route.add_veth(&ends, namespace);
        made.map_err(NetworkError::kernel(format!("make the interface {name}")))?;
        let mut inside =
            self.socket_in(namespace).map_err(NetworkError::kernel("enter the pod's network namespace"))?;
        let links: Vec<_> = rules.addresses.iter().zip(&self.cidrs).map(|(a, c)| (*a, c.bits(), c.gateway())).collect();
        inside.configure(POD_INTERFACE, &links).map_err(NetworkError::kernel(format!("configure {POD_INTERFACE}")))
    }

    fn socket_in(&self, namespace: &OwnedFd) -> io::Result<RouteSocket> {
        enter(namespace)?;
        let socket = RouteSocket::open();
        // Without the way back this thread would serve the wrong namespace.
        enter(&self.node).expect("the node's network namespace, held open, can be joined again");
        socket
    }

    /// Takes note of what a pod of an earlier daemon has.
    pub fn adopt(&mut self, pod: &PodId, network: &PodNetwork, ports: &[PortMapping]) {
        self.pool.adopt(pod, &network.addresses);
        let rules = PodRules {
            interface: network.node_interface.clone(),
            hardware_address: network.hardware_address,
            addresses: network.addresses.clone(),
            ports: ports.to_vec(),
            ranges: network.ranges.clone(),
        };
        self.rules.adopt(pod, &rules);
        self.pods.insert(pod.clone(), rules);
    }

    /// See [`super::Network::settle`].
    pub fn settle(&mut self, others: &[PodId]) -> Result<(), NetworkError> {
        let ranges = self.ranges_of_bridge()?;
        // An earlier release did not note them.
        for pod in self.pods.values_mut().filter(|pod| pod.ranges.is_empty()) {
            let has = |range: &&Cidr| pod.addresses.iter().any(|address| range.contains(*address));
            pod.ranges = ranges.iter().filter(has).copied().collect();
        }
        let served = self.served();
        self.give_addresses(&served)?;
        self.rules.set_ranges(served).and_then(|()| self.rules.write()).map_err(rules_failed)?;
        self.drop_unserved()?;
        let bridge = self.bridge.name.clone();
        let failed = || NetworkError::kernel(format!("look for what earlier pods left at the bridge {bridge}"));
        let ports = self.route.ports_of(self.bridge.index).map_err(failed())?;
        self.attach_all_but(&ports);
        for name in ports {
            let mut others = others.iter().map(node_interface);
            let is_known = self.pods.values().any(|pod| pod.interface == name) || others.any(|other| other == name);
            if name.starts_with(NAME_PREFIX) && !is_known {
                tracing::warn!(name, "an interface that no pod is behind is removed");
                self.route.remove_link(&name).map_err(failed())?;
            }
        }
        let has = |address| self.pods.values().any(|pod| pod.addresses.contains(&address));
        let served = self.served();
        let is_pods = |address| served.iter().any(|cidr| cidr.contains(address));
        forget(|flow| flow.is_led_elsewhere() && is_pods(flow.reply.source) && !has(flow.reply.source));
        Ok(())
    }

    /// Whoever removed the bridge under them left pods without one.
    fn attach_all_but(&mut self, ports: &[String]) {
        for pod in self.pods.values().filter(|pod| !ports.contains(&pod.interface)) {
            if let Err(error) = self.route.attach(&pod.interface, self.bridge.index) {
                tracing::error!(%error, "a pod is cut off: its interface {} is gone; remove the pod", pod.interface);
            }
        }
    }

    /// What somebody took away from outside is put back: the bridge, or the rules, as a firewall takes them when it is
    /// started anew.
    pub fn look_after(&mut self) -> Result<(), NetworkError> {
        if self.has_lost_bridge() {
            self.restore()?;
        }
        self.rules.look_after().map_err(rules_failed)
    }

    fn has_lost_bridge(&mut self) -> bool {
        let Bridge { name, index, .. } = &self.bridge;
        self.route.link_name(*index).is_ok_and(|found| found.as_ref() != Some(name))
    }

    /// Makes the bridge anew, with all that was at it.
    fn restore(&mut self) -> Result<(), NetworkError> {
        let Bridge { name, hardware_address, .. } = &self.bridge;
        tracing::warn!("the bridge {name} is gone: it is made anew, and the pods are connected to it again");
        let made = self.route.ensure_bridge(name, *hardware_address);
        self.bridge.index = made.map_err(NetworkError::kernel(format!("make the bridge {name}")))?;
        self.give_addresses(&self.served())?;
        self.attach_all_but(&[]);
        Ok(())
    }

    /// Removes the pod's interface and frees its addresses. What is gone already is fine.
    pub fn tear_down(&mut self, pod: &PodId) -> Result<(), NetworkError> {
        self.pool.release(pod);
        let had = self.pods.remove(pod);
        let ruled = self.rules.remove(pod).map_err(rules_failed);
        let is_earlier = |range: &&Cidr| !self.cidrs.contains(range);
        let mut earlier = had.iter().flat_map(|pod| &pod.ranges).filter(is_earlier);
        if earlier.any(|range| !self.served().contains(range))
            && let Err(error) = self.drop_unserved()
        {
            tracing::warn!(%error, "the bridge still has an address of a range that no pod has any more");
        }
        if let Some(had) = had.filter(has_datagrams) {
            forget(|flow| flow.is_led_elsewhere() && had.addresses.contains(&flow.reply.source));
        }
        let name = node_interface(pod);
        let removed =
            self.route.remove_link(&name).map_err(NetworkError::kernel(format!("remove the interface {name}")));
        ruled.and(removed)
    }
}

/// Of some daemon's built-in network.
fn is_bridge(link: &str) -> bool {
    link.starts_with(NETWORK_PREFIX) && link.ends_with(BRIDGE_NUMBER)
}

/// Takes the bridge of the network `name` and its rules out of this thread's network namespace, if they are there and
/// ours to remove: no pod is left.
pub fn dismantle(name: &str) -> Result<(), NetworkError> {
    let bridge = bridge_of(name);
    let mut route = RouteSocket::open().map_err(NetworkError::kernel("open a netlink socket"))?;
    let failed = NetworkError::kernel(format!("look for the bridge {bridge}"));
    if route.link_index(&bridge).map_err(failed)?.is_none() {
        return Ok(());
    }
    // The bridge goes last: while it is there, whoever comes again looks for the rules too.
    let removed = rules::remove(name).and_then(|()| route.remove_link(&bridge));
    match removed {
        // Somebody else's: this process is root of another user namespace.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(NetworkError::kernel(format!("remove the bridge {bridge} and its rules"))),
    }
}

fn has_datagrams(pod: &PodRules) -> bool {
    pod.ports.iter().any(|port| port.protocol == Protocol::Udp)
}

/// What clients sent to the pod's ports when nobody had them: the kernel would go on leading it nowhere.
fn forget_before(pod: &PodRules) {
    let is_for = |port: &PortMapping, flow: &connections::Flow| {
        port.protocol == Protocol::Udp
            && port.host_port == flow.original.destination_port
            && port.host.is_none_or(|host| host == flow.original.destination)
    };
    if has_datagrams(pod) {
        let is_ours = |flow: &connections::Flow| pod.ports.iter().any(|port| is_for(port, flow));
        forget(|flow| is_ours(flow) && !flow.is_led_elsewhere() && !flow.is_masqueraded());
    }
}

/// A pod is connected and removed without it too: then old clients wait until the kernel forgets by itself.
fn forget(is_stale: impl Fn(&connections::Flow) -> bool) {
    match connections::forget(is_stale) {
        Ok(0) => {}
        Ok(count) => tracing::debug!(count, "flows of datagrams that led to no pod are forgotten"),
        Err(error) => tracing::warn!(%error, "old flows of datagrams cannot be forgotten (nf_conntrack_netlink)"),
    }
}

fn rules_failed(error: io::Error) -> NetworkError {
    NetworkError::kernel("write the rules of the node's network (nftables)")(error)
}
