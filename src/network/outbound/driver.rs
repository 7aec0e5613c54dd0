//! The programs that carry packets between the node and the host's network, and how each is called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A driver's end in the node.
pub const INTERFACE: &str = "tap0";

/// The number at which a driver finds the pipe into which it writes when it is ready.
pub const READY: i32 = 3;

/// Where pods find the host's resolvers when pasta carries their packets: used by nothing else.
const PASTA_RESOLVERS: Resolvers =
    Resolvers { v4: Ipv4Addr::new(169, 254, 1, 53), v6: Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x53) };

/// The node's own address behind pasta, with its gateway. Not the host's, which pasta would take by itself: the host
/// could then not be reached from the node. The same range as slirp4netns' default.
const PASTA_ADDRESS: (Ipv4Addr, u8, Ipv4Addr) = (Ipv4Addr::new(10, 0, 2, 100), 24, Ipv4Addr::new(10, 0, 2, 2));

/// The same of IPv6, whose prefix length is pasta's to choose.
const PASTA_ADDRESS_V6: (Ipv6Addr, Ipv6Addr) =
    (Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x100), Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 2));

/// slirp4netns' own choice, in its default ranges 10.0.2.0/24 and fd00::/64.
const SLIRP_RESOLVERS: Resolvers =
    Resolvers { v4: Ipv4Addr::new(10, 0, 2, 3), v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3) };

/// In that range: an address for the node, and where slirp4netns is. It would tell them by router advertisements, to
/// which a node that forwards does not listen.
const SLIRP_ADDRESS_V6: (IpAddr, u8, IpAddr) = (
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100)),
    64,
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
);

/// What both drivers carry at most in one packet; larger packets make them several times as fast.
pub const MTU: u32 = 65520;

/// Where somebody asks for names, by the family of the resolver that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolvers {
    /// For the host's first resolver of IPv4.
    pub v4: Ipv4Addr,
    /// For its first of IPv6.
    pub v6: Ipv6Addr,
}

/// Which program carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// passt's pasta.
    Pasta,
    /// slirp4netns.
    Slirp4netns,
}

impl Driver {
    const ALL: [Self; 2] = [Self::Pasta, Self::Slirp4netns];

    /// The one with this program.
    pub fn named(program: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|driver| driver.program() == program)
    }

    /// What is executed.
    pub fn program(self) -> &'static str {
        match self {
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
        }
    }

    /// The network namespace is the driver's standard input, so that no path and no process id is needed; what says
    /// that it is ready, if it can, is at [`READY`].
    pub fn arguments(self, host_loopback: bool) -> Vec<String> {
        const NAMESPACE: &str = "/proc/self/fd/0";
        let (address, bits, gateway) = PASTA_ADDRESS;
        let (address_v6, gateway_v6) = PASTA_ADDRESS_V6;
        let loopback = match (self, host_loopback) {
            (_, true) => "",
            (Self::Pasta, false) => "--no-map-gw",
            (Self::Slirp4netns, false) => "--disable-host-loopback",
        };
        let Resolvers { v4, v6 } = self.resolvers();
        let text = match self {
            Self::Pasta => format!(
                "--foreground --quiet --config-net --ns-ifname {INTERFACE} --address {address} --netmask {bits} --gateway {gateway} --address {address_v6} --gateway {gateway_v6} --netns {NAMESPACE} --netns-only --runas 0 --mtu {MTU} \
                 {loopback} --tcp-ports none --udp-ports none --tcp-ns none --udp-ns none --dns-forward {v4} --dns-forward {v6}"
            ),
            Self::Slirp4netns => {
                format!(
                    "--configure --mtu={MTU} {loopback} --enable-ipv6 --ready-fd={READY} --netns-type=path {NAMESPACE} {INTERFACE}"
                )
            }
        };
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// The addresses at which pods reach the host's resolvers.
    pub fn resolvers(self) -> Resolvers {
        match self {
            Self::Pasta => PASTA_RESOLVERS,
            Self::Slirp4netns => SLIRP_RESOLVERS,
        }
    }

    /// What the node's end lacks when the driver is ready: an address, its prefix length, a gateway.
    pub fn lacks(self) -> Option<(IpAddr, u8, IpAddr)> {
        match self {
            Self::Pasta => None,
            Self::Slirp4netns => Some(SLIRP_ADDRESS_V6),
        }
    }

    /// The first that is installed.
    pub fn installed() -> Option<Self> {
        let path = std::env::var_os("PATH")?;
        let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
        Self::ALL.into_iter().find(|d| directories.iter().any(|dir| dir.join(d.program()).is_file()))
    }
}
