//! rtnetlink: links, addresses and routes of one network namespace, several messages in one system call.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::network::Cidr;

/// Bytes of one answer of the kernel.
const ANSWER_BYTES: usize = 32 << 10;

const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// Frames to 01:80:c2:00:00:03 and up to :0f go the way of all others, past the node's rules. By itself the kernel takes
/// those to :0e (LLDP) for the node without asking a rule; those to :00 to :02 it does not let be changed.
const LINK_LOCAL_GROUPS: u16 = 0xfff8;

/// Addresses of no machine (RFC 5737, RFC 3849): what leads there is the way to the rest of the world.
const ELSEWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// A pod's pair of interfaces.
#[derive(Debug)]
pub struct Ends<'a> {
    /// At the bridge.
    pub name: &'a str,
    /// Index of the bridge.
    pub bridge: u32,
    /// In the pod.
    pub inside: &'a str,
    /// Of the end in the pod.
    pub hardware_address: Option<[u8; 6]>,
    /// Of both; none: the kernel's choice.
    pub mtu: Option<u32>,
}

/// A way to others.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Index of the link.
    pub link: u32,
    pub to: Cidr,
    /// Those others are at the link, not behind a gateway.
    pub is_direct: bool,
}

/// A netlink socket of the namespace in which it was opened.
#[derive(Debug)]
pub struct RouteSocket {
    socket: Socket,
    sequence: u32,
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl RouteSocket {
    /// In the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends all messages at once; the first error of any is the answer.
    fn batch(&mut self, messages: Vec<(RouteNetlinkMessage, u16)>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let count = messages.len();
        for (message, flags) in messages {
            bytes.extend(self.serialize(message, flags | NLM_F_ACK));
        }
        self.socket.send(&bytes, 0)?;
        let mut outcome = Ok(());
        let mut answered = 0;
        while answered < count {
            for payload in self.receive()? {
                if let NetlinkPayload::Error(error) = payload {
                    answered += 1;
                    if error.code.is_some() {
                        outcome = outcome.and(Err(error.to_io()));
                    }
                }
            }
        }
        outcome
    }

    fn serialize(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        self.sequence += 1;
        message.header.sequence_number = self.sequence;
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        // Messages in one buffer begin at multiples of four.
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn receive(&mut self) -> io::Result<Vec<NetlinkPayload<RouteNetlinkMessage>>> {
        let mut bytes = Vec::with_capacity(ANSWER_BYTES);
        self.socket.recv(&mut bytes, 0)?;
        let mut rest = &bytes[..];
        let mut payloads = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
            if length == 0 {
                break;
            }
            payloads.push(message.payload);
            rest = &rest[length..];
        }
        Ok(payloads)
    }

    /// The index of a link; none when there is no such link.
    pub fn link_index(&mut self, name: &str) -> io::Result<Option<u32>> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        Ok(self.link(link)?.map(|link| link.header.index))
    }

    /// The link that has this name or this index; none when there is no such link.
    fn link(&mut self, which: LinkMessage) -> io::Result<Option<LinkMessage>> {
        let bytes = self.serialize(RouteNetlinkMessage::GetLink(which), 0);
        self.socket.send(&bytes, 0)?;
        for payload in self.receive()? {
            match payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => return Ok(Some(link)),
                NetlinkPayload::Error(error) if error.raw_code() == -libc::ENODEV => return Ok(None),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
        Err(io::Error::other("the kernel did not answer"))
    }

    /// Makes the bridge unless it is there; answers its index. With an address of its own it does not change to that
    /// of the pod that has the lowest.
    pub fn ensure_bridge(&mut self, name: &str, hardware_address: Option<[u8; 6]>) -> io::Result<u32> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let is_new = self.link_index(name)?.is_none();
        link.attributes.extend(hardware_address.filter(|_| is_new).map(|mac| LinkAttribute::Address(mac.to_vec())));
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::GroupFwdMask(LINK_LOCAL_GROUPS)])),
        ]));
        up(&mut link);
        self.batch(vec![(RouteNetlinkMessage::NewLink(link), if is_new { CREATE } else { 0 })])?;
        self.link_index(name)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Adds an address without duplicate detection; that it is there already is fine.
    pub fn add_address(&mut self, link: u32, address: IpAddr, bits: u8) -> io::Result<()> {
        self.batch(vec![(address_message(link, address, bits), NLM_F_CREATE | NLM_F_REPLACE)])
    }

    /// That there is no such address is fine.
    pub fn remove_address(&mut self, link: u32, address: IpAddr, bits: u8) -> io::Result<()> {
        let message = match address_message(link, address, bits) {
            RouteNetlinkMessage::NewAddress(message) => RouteNetlinkMessage::DelAddress(message),
            other => other,
        };
        match self.batch(vec![(message, 0)]) {
            Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }

    /// A pair: one end at the bridge, the other in `namespace`.
    pub fn add_veth(&mut self, ends: &Ends<'_>, namespace: &OwnedFd) -> io::Result<()> {
        let mtu = || ends.mtu.map(LinkAttribute::Mtu);
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(ends.inside.to_owned()));
        peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        peer.attributes.extend(ends.hardware_address.map(|mac| LinkAttribute::Address(mac.to_vec())));
        peer.attributes.extend(mtu());
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(ends.name.to_owned()));
        link.attributes.push(LinkAttribute::Controller(ends.bridge));
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        link.attributes.extend(mtu());
        up(&mut link);
        let messages = vec![(RouteNetlinkMessage::NewLink(link), CREATE), (hairpin(ends.name), 0)];
        self.batch(messages)
    }

    /// Makes a link that is there a port of the bridge.
    pub fn attach(&mut self, name: &str, bridge: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link.attributes.push(LinkAttribute::Controller(bridge));
        up(&mut link);
        self.batch(vec![(RouteNetlinkMessage::NewLink(link), 0), (hairpin(name), 0)])
    }

    /// Of the link by which the rest of the world is reached, which is not `bridge`; none when nothing leads there.
    pub fn uplink_mtu(&mut self, bridge: u32) -> io::Result<Option<u32>> {
        for address in ELSEWHERE {
            let Some(index) = self.route_to(address)?.filter(|index| *index != bridge) else { continue };
            let mut link = LinkMessage::default();
            link.header.index = index;
            let mtu = |attribute: &LinkAttribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            };
            return Ok(self.link(link)?.and_then(|link| link.attributes.iter().find_map(mtu)));
        }
        Ok(None)
    }

    /// Index of the link by which `address` is reached; none where it is this network namespace's own.
    fn route_to(&mut self, address: IpAddr) -> io::Result<Option<u32>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(address)));
        let bytes = self.serialize(RouteNetlinkMessage::GetRoute(message), 0);
        self.socket.send(&bytes, 0)?;
        Ok(self.receive()?.iter().find_map(|payload| match payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => leaves_by(route),
            _ => None,
        }))
    }

    /// Where the main table leads, but for the default.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let messages = self.dump(RouteNetlinkMessage::GetRoute(message))?;
            found.extend(messages.into_iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) => route_of(&route),
                _ => None,
            }));
        }
        Ok(found)
    }

    /// Names of the links that are ports of a bridge.
    pub fn ports_of(&mut self, bridge: u32) -> io::Result<Vec<String>> {
        let mut link = LinkMessage::default();
        // Only those of the bridge are told.
        link.attributes.push(LinkAttribute::Controller(bridge));
        let links = self.dump(RouteNetlinkMessage::GetLink(link))?.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        let ports = links.filter(|link| link.attributes.contains(&LinkAttribute::Controller(bridge)));
        Ok(ports.filter_map(name_of).collect())
    }

    /// Every address of this network namespace, with the index of its link before it and its prefix length behind it.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, IpAddr, u8)>> {
        let messages = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let address = |attribute| match attribute {
            AddressAttribute::Address(address) => Some(address),
            _ => None,
        };
        let found = messages.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(found) => {
                let (link, bits) = (found.header.index, found.header.prefix_len);
                Some((link, found.attributes.into_iter().find_map(address)?, bits))
            }
            _ => None,
        });
        Ok(found.collect())
    }

    /// The name of a link; none when there is no such link.
    pub fn link_name(&mut self, index: u32) -> io::Result<Option<String>> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        Ok(self.link(link)?.and_then(name_of))
    }

    fn dump(&mut self, what: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let bytes = self.serialize(what, NLM_F_DUMP);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        loop {
            for payload in self.receive()? {
                match payload {
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    _ => {}
                }
            }
        }
    }

    /// Whatever bears `mark` is for this network namespace itself, whatever its address.
    pub fn local_by_mark(&mut self, mark: u32, table: u32) -> io::Result<()> {
        let loopback = self.link_index("lo")?.ok_or(io::ErrorKind::NotFound)?;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut rule = RuleMessage::default();
            rule.header.family = family;
            rule.header.action = RuleAction::ToTable;
            rule.attributes.push(RuleAttribute::FwMark(mark));
            rule.attributes.push(RuleAttribute::Table(table));
            let mut route = RouteMessage::default();
            route.header.address_family = family;
            route.header.protocol = RouteProtocol::Static;
            route.header.scope = RouteScope::Host;
            route.header.kind = RouteType::Local;
            route.attributes.push(RouteAttribute::Table(table));
            route.attributes.push(RouteAttribute::Oif(loopback));
            for message in [RouteNetlinkMessage::NewRule(rule), RouteNetlinkMessage::NewRoute(route)] {
                match self.batch(vec![(message, CREATE)]) {
                    Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                    // A machine without IPv6.
                    Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) && family == AddressFamily::Inet6 => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Brings a link up with addresses (address, prefix length, gateway of the default route).
    pub fn configure(&mut self, name: &str, addresses: &[(IpAddr, u8, IpAddr)]) -> io::Result<()> {
        let index = self.link_index(name)?.ok_or(io::ErrorKind::NotFound)?;
        let mut link = LinkMessage::default();
        link.header.index = index;
        up(&mut link);
        let mut messages = vec![(RouteNetlinkMessage::SetLink(link), 0)];
        for (address, bits, _) in addresses {
            messages.push((address_message(index, *address, *bits), CREATE));
        }
        for (_, _, gateway) in addresses {
            messages.push((default_route(index, *gateway), CREATE));
        }
        self.batch(messages)
    }

    /// Removes a link; that there is none is fine.
    pub fn remove_link(&mut self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.batch(vec![(RouteNetlinkMessage::DelLink(link), 0)]) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }
}

/// The link; none: it leads to nobody else.
fn leaves_by(route: &RouteMessage) -> Option<u32> {
    let out = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    };
    route.attributes.iter().find_map(out).filter(|_| route.header.kind == RouteType::Unicast)
}

fn route_of(route: &RouteMessage) -> Option<Route> {
    let to = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let to = Cidr::around(route.attributes.iter().find_map(to)?, route.header.destination_prefix_length)?;
    let is_gateway =
        |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
    let is_direct = !route.attributes.iter().any(is_gateway);
    let is_main = route.header.table == RouteHeader::RT_TABLE_MAIN;
    leaves_by(route).filter(|_| is_main).map(|link| Route { link, to, is_direct })
}

fn name_of(link: LinkMessage) -> Option<String> {
    link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

/// A pod that dials its own service comes back through the port it left by.
fn hairpin(name: &str) -> RouteNetlinkMessage {
    let mut port = LinkMessage::default();
    port.attributes.push(LinkAttribute::IfName(name.to_owned()));
    port.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ]));
    RouteNetlinkMessage::NewLink(port)
}

fn up(link: &mut LinkMessage) {
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
}

fn address_message(link: u32, address: IpAddr, bits: u8) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = bits;
    message.header.index = link;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    RouteNetlinkMessage::NewAddress(message)
}

fn default_route(link: u32, gateway: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    let unspecified: IpAddr =
        if gateway.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(unspecified)));
    message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
    message.attributes.push(RouteAttribute::Oif(link));
    RouteNetlinkMessage::NewRoute(message)
}
