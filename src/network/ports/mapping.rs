//! One host port of a pod.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What runs over the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
    /// Neither; not every kernel has it.
    Sctp,
}

impl Protocol {
    /// IANA's number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// What arrives at `host_port` of the host goes to `pod_port` of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// What runs over it.
    pub protocol: Protocol,
    /// Which address of the host; none: all of them, of both families.
    pub host: Option<IpAddr>,
    /// Never zero.
    pub host_port: u16,
    /// Never zero.
    pub pod_port: u16,
}

impl PortMapping {
    /// Whether both cannot be had at the same time.
    pub fn collides(&self, other: &Self) -> bool {
        let same_host = match (self.host, other.host) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        (self.protocol, self.host_port) == (other.protocol, other.host_port) && same_host
    }

    /// Addresses to listen at.
    pub fn hosts(&self) -> Vec<IpAddr> {
        const ALL: [IpAddr; 2] =
            [IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)];
        self.host.map_or_else(|| ALL.to_vec(), |host| vec![host])
    }
}

/// `8080/tcp`, `127.0.0.1:8080/udp`, `[::1]:8080/tcp`.
impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Some(host) => write!(f, "{}/{}", std::net::SocketAddr::from((host, self.host_port)), self.protocol),
            None => write!(f, "{}/{}", self.host_port, self.protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host: Option<&str>, host_port: u16) -> PortMapping {
        let host = host.map(|h| h.parse().expect("an address"));
        PortMapping { protocol: Protocol::Tcp, host, host_port, pod_port: 80 }
    }

    #[test]
    fn ports_collide_where_their_addresses_overlap() {
        let (all, one, other) =
            (mapping(None, 8080), mapping(Some("127.0.0.1"), 8080), mapping(Some("192.0.2.1"), 8080));
        assert!(all.collides(&one) && one.collides(&all) && one.collides(&one));
        assert!(!one.collides(&other) && !all.collides(&mapping(None, 8081)));
        assert!(!all.collides(&PortMapping { protocol: Protocol::Udp, ..all }));
        assert_eq!((all.to_string(), one.to_string()), ("8080/tcp".into(), "127.0.0.1:8080/tcp".into()));
    }
}
