//! Who has a port: found in the calling thread's network namespace, when a port is taken, to be named in the message.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Protocol;
use crate::sys::lookout::Lookout;
use crate::sys::process::with_socket;

/// A table of sockets is read up to here.
const TABLE_LIMIT_LINES: usize = 200_000;

/// `nginx (pid 71)`, as far as it can be known. In a user namespace of our own we may not look into the host's processes,
/// not even into this user's: then `lookout` does.
pub fn holder_of(protocol: Protocol, address: SocketAddr, lookout: Option<&Lookout>) -> Option<String> {
    let socket = tables(protocol).into_iter().find_map(|table| {
        let lines = BufReader::new(File::open(format!("/proc/thread-self/net/{table}")).ok()?).lines();
        let mut sockets = lines.skip(1).take(TABLE_LIMIT_LINES).map_while(Result::ok).filter_map(|line| parse(&line));
        sockets.find(|found| found.stands_at(protocol, address))
    })?;
    let by_lookout = || lookout.and_then(|lookout| lookout.process_with_socket(socket.inode));
    Some(with_socket(socket.inode).or_else(by_lookout).unwrap_or_else(|| somebody(&socket, address.port())))
}

fn somebody(socket: &Socket, port: u16) -> String {
    let own = socket.uid == rustix::process::geteuid().as_raw();
    let whose = if own { "this user" } else { "another user" };
    format!("a process of {whose} (`sudo ss -lnp 'sport = {port}'` names it)")
}

fn tables(protocol: Protocol) -> Vec<&'static str> {
    match protocol {
        Protocol::Tcp => vec!["tcp", "tcp6"],
        Protocol::Udp => vec!["udp", "udp6"],
        Protocol::Sctp => Vec::new(),
    }
}

/// A socket at `held` keeps another from `wanted`, which is for one family: one at `::` may have both.
fn overlap(held: IpAddr, wanted: IpAddr) -> bool {
    let same_family = held.is_ipv4() == wanted.is_ipv4();
    let either = held.is_unspecified() || wanted.is_unspecified();
    held == wanted || if same_family { either } else { held == IpAddr::from(Ipv6Addr::UNSPECIFIED) }
}

/// One line of such a table.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    address: SocketAddr,
    state: u8,
    uid: u32,
    inode: u64,
}

impl Socket {
    fn stands_at(&self, protocol: Protocol, address: SocketAddr) -> bool {
        const LISTEN: u8 = 10;
        self.address.port() == address.port()
            && overlap(self.address.ip().to_canonical(), address.ip())
            && (protocol != Protocol::Tcp || self.state == LISTEN)
    }
}

fn parse(line: &str) -> Option<Socket> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (ip, port) = fields.get(1)?.split_once(':')?;
    Some(Socket {
        address: SocketAddr::new(parse_ip(ip)?, u16::from_str_radix(port, 16).ok()?),
        state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
        uid: fields.get(7)?.parse().ok()?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// Words of four bytes, each printed as the machine's own number.
fn parse_ip(text: &str) -> Option<IpAddr> {
    const WORD_DIGITS: usize = 8;
    let words = (0..text.len()).step_by(WORD_DIGITS).map(|start| {
        let word = text.get(start..start + WORD_DIGITS)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(Ipv4Addr::from(v4).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn this_process_is_named_as_the_holder_of_its_ports() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
        let listener = TcpListener::bind("[::]:0").expect("a port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let own = format!("(pid {})", std::process::id());
        let at = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let v6 = holder_of(Protocol::Tcp, at(listener.local_addr().expect("bound").port()), None).expect("found");
        assert!(v6.ends_with(&own), "{v6}");
        let found = holder_of(Protocol::Udp, at(udp.local_addr().expect("bound").port()), None).expect("found");
        assert!(found.ends_with(&own), "{found}");
        let closed = tcp.expect("bound");
        assert_eq!(holder_of(Protocol::Tcp, closed, None).filter(|found| found.ends_with(&own)), None);
    }

    #[test]
    fn a_socket_of_the_other_family_is_not_in_the_way_unless_it_has_both() {
        const ALL_4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        const ALL_6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let (own_4, own_6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
        // What we have bound for IPv4 a moment ago does not keep us from IPv6.
        assert!(!overlap(ALL_4, ALL_6) && !overlap(own_4, own_6) && !overlap(own_6, ALL_4));
        assert!(overlap(own_6, ALL_6) && overlap(ALL_6, ALL_4) && overlap(ALL_6, own_4) && overlap(own_4, ALL_4));
    }
}
