//! `--publish [ADDRESS:]PORT[:PORT][/PROTOCOL]`.

use std::net::IpAddr;

use anyhow::bail;

use crate::proto::cri;

/// A port of the host for one of the container's; one alone is both.
pub fn mapping(text: &str) -> anyhow::Result<cri::PortMapping> {
    const EXPECTED: &str = "[ADDRESS:]HOST_PORT:CONTAINER_PORT[/tcp|udp|sctp] is expected";
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => cri::Protocol::Tcp,
        "udp" => cri::Protocol::Udp,
        "sctp" => cri::Protocol::Sctp,
        _ => bail!("--publish {text:?}: {EXPECTED}"),
    };
    // From the end, because an IPv6 address has colons of its own.
    let mut fields = ports.rsplitn(3, ':');
    let container = fields.next().unwrap_or_default();
    let host = fields.next().unwrap_or(container);
    let address = fields.next().map(|address| address.trim_matches(['[', ']']));
    let number = |field: &str| field.parse::<u16>().ok().filter(|port| *port != 0).map(i32::from);
    let (Some(container_port), Some(host_port)) = (number(container), number(host)) else {
        bail!("--publish {text:?}: {EXPECTED}");
    };
    if let Some(address) = address.filter(|address| address.parse::<IpAddr>().is_err()) {
        bail!("--publish {text:?}: {address:?} is no address; {EXPECTED}");
    }
    let host_ip = address.unwrap_or_default().to_owned();
    Ok(cri::PortMapping { protocol: protocol.into(), container_port, host_port, host_ip })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_understood() {
        let read = |text: &str| {
            let port = mapping(text).expect(text);
            (port.host_ip.clone(), port.host_port, port.container_port, port.protocol())
        };
        let (tcp, udp) = (cri::Protocol::Tcp, cri::Protocol::Udp);
        assert_eq!(read("8080:80"), (String::new(), 8080, 80, tcp));
        assert_eq!(read("80"), (String::new(), 80, 80, tcp));
        assert_eq!(read("127.0.0.1:8080:80/udp"), ("127.0.0.1".into(), 8080, 80, udp));
        assert_eq!(read("[::1]:8080:80"), ("::1".into(), 8080, 80, tcp));
        for bad in ["", "x", "8080:", ":80", "0:80", "65536:80", "8080:80/icmp", "localhost:8080:80"] {
            assert!(mapping(bad).is_err(), "{bad:?}");
        }
    }
}
