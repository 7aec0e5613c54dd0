//! The host ports that a pod asks for, checked.

use std::net::{IpAddr, Ipv4Addr};

use crate::network::ports::{PortMapping, Protocol};
use crate::pod::context::pod_modes;
use crate::pod::error::{PodError, quoted};
use crate::proto::{cri, supervisor as wire};

/// More are no pod's.
const PORTS_LIMIT: usize = 1024;

/// What a pod on a network of its own asks for; one on the node's has its ports there already. A kubelet also names
/// ports without a port of the host: these ask for nothing.
pub(crate) fn of(config: &cri::PodSandboxConfig) -> Result<Vec<PortMapping>, PodError> {
    let mut found: Vec<PortMapping> = Vec::new();
    if pod_modes(config).network == wire::NamespaceMode::Node {
        return Ok(found);
    }
    for asked in config.port_mappings.iter().filter(|asked| asked.host_port != 0) {
        let port = mapping(asked)?;
        if found.contains(&port) {
            continue;
        }
        if let Some(other) = found.iter().find(|other| other.collides(&port)) {
            return Err(PodError::invalid(format!("host port {port} is asked for twice (see {other})")));
        }
        if found.len() == PORTS_LIMIT {
            return Err(PodError::invalid(format!("a pod has at most {PORTS_LIMIT} host ports")));
        }
        found.push(port);
    }
    Ok(found)
}

/// For people.
pub(crate) fn listed(config: &cri::PodSandboxConfig) -> Vec<String> {
    let line = |port: &PortMapping| {
        let host = port.host.map(|host| std::net::SocketAddr::new(host, port.host_port).to_string());
        let host = host.unwrap_or_else(|| port.host_port.to_string());
        format!("{host}->{}/{}", port.pod_port, port.protocol)
    };
    of(config).unwrap_or_default().iter().map(line).collect()
}

fn mapping(asked: &cri::PortMapping) -> Result<PortMapping, PodError> {
    let number = |what: &str, value: i32| {
        let port = u16::try_from(value).ok().filter(|port| *port != 0);
        port.ok_or_else(|| PodError::invalid(format!("{what} {value}: a port is a number from 1 to 65535")))
    };
    let protocol = match cri::Protocol::try_from(asked.protocol) {
        Ok(cri::Protocol::Tcp) => Protocol::Tcp,
        Ok(cri::Protocol::Udp) => Protocol::Udp,
        Ok(cri::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => return Err(PodError::invalid(format!("there is no protocol {}", asked.protocol))),
    };
    let bad = || PodError::invalid(format!("host_ip {:?} is no address", quoted(&asked.host_ip)));
    let host = match asked.host_ip.as_str() {
        "" => None,
        text => Some(text.parse::<IpAddr>().map_err(|_| bad())?.to_canonical()),
    };
    if let Some(host) = host.filter(|host| host.is_multicast() || *host == IpAddr::V4(Ipv4Addr::BROADCAST)) {
        return Err(PodError::invalid(format!("host_ip {host} is no address of a host")));
    }
    Ok(PortMapping {
        protocol,
        host: host.filter(|host| !host.is_unspecified()),
        host_port: number("host port", asked.host_port)?,
        pod_port: number("container port", asked.container_port)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::error::PodErrorKind;

    fn asked(host_ip: &str, host_port: i32, container_port: i32) -> cri::PortMapping {
        cri::PortMapping { host_ip: host_ip.to_owned(), host_port, container_port, ..Default::default() }
    }

    fn read(port_mappings: Vec<cri::PortMapping>) -> Result<Vec<String>, PodError> {
        let config = cri::PodSandboxConfig { port_mappings, ..Default::default() };
        Ok(of(&config)?.iter().map(|port| format!("{port} {}", port.pod_port)).collect())
    }

    #[test]
    fn ports_are_checked_before_anything_is_made() {
        let ports = vec![asked("", 8080, 80), asked("0.0.0.0", 8080, 80), asked("::1", 81, 81), asked("", 0, 82)];
        assert_eq!(read(ports).expect("ports"), ["8080/tcp 80", "[::1]:81/tcp 81"]);
        for bad in [asked("", 8080, 0), asked("", -1, 80), asked("", 65536, 80), asked("x", 1, 1)] {
            assert!(read(vec![bad.clone()]).is_err(), "{bad:?}");
        }
        for many in ["224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:224.0.0.1"] {
            assert_eq!(read(vec![asked(many, 8080, 80)]).expect_err(many).kind, PodErrorKind::Invalid);
        }
        assert!(read(vec![asked("", 8080, 80), asked("127.0.0.1", 8080, 81)]).is_err());
        let written_twice =
            vec![asked("127.0.0.1", 1, 1), asked("::ffff:127.0.0.1", 1, 1), asked("::ffff:0.0.0.0", 2, 2)];
        assert_eq!(read(written_twice).expect("ports"), ["127.0.0.1:1/tcp 1", "2/tcp 2"]);
        let many = |count: i32| (1..=count).map(|port| asked("", port, 1)).collect();
        assert!(read(many(1024)).is_ok() && read(many(1025)).is_err());
    }
}
