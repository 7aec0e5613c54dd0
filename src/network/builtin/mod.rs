//! The built-in network: a bridge in the node, a veth pair per pod.

mod nftables;
mod route;
mod thread;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};

use crate::store::PodId;

use super::pool::Pool;
use super::{Cidr, NetworkError, PodNetwork};

pub use thread::BuiltinThread;

use route::RouteSocket;

/// Name of the bridge in the node's network namespace.
const BRIDGE: &str = "cricket0";

/// Name of a pod's interface inside the pod.
const POD_INTERFACE: &str = "eth0";

/// Digits of the pod's id in the name of the interface at the bridge: with the prefix, what the kernel allows.
const NAME_DIGITS: usize = 13;

/// Lives in the network thread, in the node's network namespace.
#[derive(Debug)]
pub struct Builtin {
    node: OwnedFd,
    route: RouteSocket,
    bridge: u32,
    cidrs: Vec<Cidr>,
    pool: Pool,
}

fn node_interface(pod: &PodId) -> String {
    format!("ck{}", &pod.as_str()[..NAME_DIGITS])
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

impl Builtin {
    /// Joins the node's network namespace with this thread, for good.
    pub fn start(node: OwnedFd, cidrs: Vec<Cidr>) -> Result<Self, NetworkError> {
        enter(&node).map_err(NetworkError::kernel("join the node's network namespace"))?;
        let mut route = RouteSocket::open().map_err(NetworkError::kernel("open a netlink socket"))?;
        let bridge = route.ensure_bridge(BRIDGE).map_err(NetworkError::kernel(format!("make the bridge {BRIDGE}")))?;
        let mut network = Self { node, route, bridge, cidrs: Vec::new(), pool: Pool::default() };
        network.forward()?;
        network.change_ranges(cidrs)?;
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

    /// See [`super::Network::change_ranges`].
    pub fn change_ranges(&mut self, cidrs: Vec<Cidr>) -> Result<(), NetworkError> {
        for cidr in &cidrs {
            self.route
                .add_address(self.bridge, cidr.gateway(), cidr.bits())
                .map_err(NetworkError::kernel(format!("give the bridge {BRIDGE} the address {}", cidr.gateway())))?;
        }
        nftables::masquerade(BRIDGE, &cidrs).map_err(NetworkError::kernel("write the masquerade rules (nftables)"))?;
        self.cidrs = cidrs;
        Ok(())
    }

    /// Gives the pod an interface `eth0` in `namespace`, addresses and default routes. After an error nothing is left.
    pub fn set_up(&mut self, pod: &PodId, namespace: &OwnedFd) -> Result<PodNetwork, NetworkError> {
        let addresses = self.pool.take(pod, &self.cidrs)?;
        let result = self.connect(pod, namespace, &addresses);
        if result.is_err() {
            let _ = self.tear_down(pod);
        }
        result?;
        Ok(PodNetwork {
            interface: POD_INTERFACE.to_owned(),
            node_interface: node_interface(pod),
            addresses,
            cni: None,
        })
    }

    fn connect(&mut self, pod: &PodId, namespace: &OwnedFd, addresses: &[IpAddr]) -> Result<(), NetworkError> {
        let name = node_interface(pod);
        self.route
            .add_veth(&name, self.bridge, POD_INTERFACE, namespace)
            .map_err(NetworkError::kernel(format!("make the interface {name}")))?;
        let mut inside =
            self.socket_in(namespace).map_err(NetworkError::kernel("enter the pod's network namespace"))?;
        let links: Vec<_> = addresses.iter().zip(&self.cidrs).map(|(a, c)| (*a, c.bits(), c.gateway())).collect();
        inside.configure(POD_INTERFACE, &links).map_err(NetworkError::kernel(format!("configure {POD_INTERFACE}")))
    }

    fn socket_in(&self, namespace: &OwnedFd) -> io::Result<RouteSocket> {
        enter(namespace)?;
        let socket = RouteSocket::open();
        // Without the way back this thread would serve the wrong namespace.
        enter(&self.node).expect("the node's network namespace, held open, can be joined again");
        socket
    }

    /// Takes note of the addresses of a pod of an earlier daemon.
    pub fn adopt(&mut self, pod: &PodId, addresses: &[IpAddr]) {
        self.pool.adopt(pod, addresses);
    }

    /// Removes the pod's interface and frees its addresses. What is gone already is fine.
    pub fn tear_down(&mut self, pod: &PodId) -> Result<(), NetworkError> {
        self.pool.release(pod);
        let name = node_interface(pod);
        self.route.remove_link(&name).map_err(NetworkError::kernel(format!("remove the interface {name}")))
    }
}
