//! What the node's nftables say, in two tables of ours that are written as a whole when the daemon has found out what
//! pods there are; afterwards a pod is a few elements of sets, so nothing grows slower with the number of pods.
//!
//! ```text
//! inet NAME        masquerading, host ports on the node's addresses (maps of port -> pod), hairpin, the guard of
//!                  loopback, and the way back of connections that the forwarder made with a client's address
//! bridge NAME      a pod's frames bear its own MAC address and its own IP addresses, or are dropped
//! ```
//!
//! NAME is the network's: other daemons in this network namespace have tables of other names.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use crate::network::Cidr;
use crate::network::ports::{FORWARDED_MARK, PortMapping, RETURNING_MARK};
use crate::store::PodId;

use super::nftables::{
    Batch, CT_DIRECTION, CT_MARK, CT_STATUS, Element, Expression, FAMILY_BRIDGE, FAMILY_INET, FAMILY_IPV4, FAMILY_IPV6,
    Hook, LINK_HEADER, META_IIFNAME, META_L4PROTO, META_MARK, META_NFPROTO, META_OIFNAME, NETWORK_HEADER, REGISTER,
    SetKind, TRANSPORT_HEADER, Table, WORD, Way, accept, connection, destination_nat, different, drop_packet, equal,
    immediate, interface_name, mapped, masked, masquerade, member, meta, payload, set_connection_mark, set_mark,
    to_local,
};

const INET: Table = Table { family: FAMILY_INET };
const BRIDGE: Table = Table { family: FAMILY_BRIDGE };

/// Types of the nft program, with their lengths in bytes.
const IPV4: (u32, u32) = (7, 4);
const IPV6: (u32, u32) = (8, 16);
const ETHER: (u32, u32) = (9, 6);
const PROTOCOL: (u32, u32) = (12, 1);
const PORT: (u32, u32) = (13, 2);
const INTERFACE: (u32, u32) = (41, 16);

/// Host ports at every address of the node, and at one.
const PORTS_4: &str = "ports4";
const PORTS_6: &str = "ports6";
const HOST_PORTS_4: &str = "hostports4";
const HOST_PORTS_6: &str = "hostports6";
/// Interfaces of pods, and what may come from each.
const GUARDED: &str = "guarded";
const MACS: &str = "macs";
const ADDRESSES_4: &str = "addresses4";
const ADDRESSES_6: &str = "addresses6";

/// NF_INET_* and NF_BR_*: the numbers are the same.
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// IPS_DST_NAT.
const DESTINATION_CHANGED: u32 = 1 << 5;

/// A pod as the rules see it.
#[derive(Debug, Clone)]
pub struct PodRules {
    /// At the bridge.
    pub interface: String,
    /// None: made by an earlier release; its frames are not looked at.
    pub hardware_address: Option<[u8; 6]>,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<PortMapping>,
    /// Of which its addresses are; none: not known.
    pub ranges: Vec<Cidr>,
}

/// See the module. Lives in the network thread.
#[derive(Debug)]
pub struct Rules {
    name: String,
    bridge: String,
    cidrs: Vec<Cidr>,
    pods: HashMap<PodId, Vec<Element>>,
    /// The kernel has what stands here.
    written: bool,
    /// The kernel filters frames.
    guards: bool,
    way: Way,
}

impl Rules {
    /// In tables called `name`, for the pods at `bridge`.
    pub fn new(name: &str, bridge: &str) -> Self {
        let (name, bridge) = (name.to_owned(), bridge.to_owned());
        Self {
            name,
            bridge,
            cidrs: Vec::new(),
            pods: HashMap::new(),
            written: false,
            guards: true,
            way: Way::default(),
        }
    }

    pub fn set_ranges(&mut self, cidrs: Vec<Cidr>) -> io::Result<()> {
        let is_new = self.cidrs != cidrs;
        self.cidrs = cidrs;
        if is_new && self.written { self.write() } else { Ok(()) }
    }

    /// Whether the kernel was told.
    pub fn are_written(&self) -> bool {
        self.written
    }

    /// Tables that the kernel was told of, and that somebody took away, are written again.
    pub fn look_after(&mut self) -> io::Result<()> {
        let tables = [INET, BRIDGE].into_iter().filter(|table| self.guards || *table != BRIDGE);
        let mut missing = tables.map(|table| self.way.has_table(&self.name, table).map(|has| !has));
        if !self.written || !missing.try_fold(false, |any, is| is.map(|is| any || is))? {
            return Ok(());
        }
        tracing::warn!("the rules of the node's network are gone (nftables): they are written again");
        self.write()
    }

    /// Takes note of a pod without telling the kernel: [`Rules::write`] follows.
    pub fn adopt(&mut self, pod: &PodId, rules: &PodRules) {
        self.pods.insert(pod.clone(), elements(rules));
    }

    pub fn add(&mut self, pod: &PodId, rules: &PodRules) -> io::Result<()> {
        let new = elements(rules);
        self.pods.insert(pod.clone(), new.clone());
        if self.written {
            let mut batch = Batch::new(&self.name);
            batch.add_elements(self.known(&new));
            if batch.commit(&self.way).is_ok() {
                return Ok(());
            }
        }
        // Somebody removed our tables, as a firewall does when it is started anew.
        self.write()
    }

    /// That there is nothing of the pod is fine.
    pub fn remove(&mut self, pod: &PodId) -> io::Result<()> {
        let Some(old) = self.pods.remove(pod) else { return Ok(()) };
        if !self.written {
            return Ok(());
        }
        let mut batch = Batch::new(&self.name);
        batch.remove_elements(self.known(&old));
        batch.commit(&self.way).or_else(|_| self.write())
    }

    fn known<'a>(&self, elements: &'a [Element]) -> impl Iterator<Item = &'a Element> {
        let guards = self.guards;
        elements.iter().filter(move |element| guards || element.table != BRIDGE)
    }

    /// Replaces both tables, in one transaction.
    pub fn write(&mut self) -> io::Result<()> {
        self.written = false;
        if let Err(error) = self.transaction().commit(&self.way) {
            if !self.guards || !filters_no_frames(&error) {
                return Err(error);
            }
            self.guards = false;
            self.transaction().commit(&self.way)?;
            tracing::warn!(%error, "pods can take each other's addresses: this kernel filters no frames at bridges (nf_tables_bridge)");
        }
        self.written = true;
        Ok(())
    }

    fn transaction(&self) -> Batch<'_> {
        let mut batch = Batch::new(&self.name);
        address_translation(&mut batch, &self.bridge, &self.cidrs);
        if self.guards {
            guard(&mut batch);
        }
        batch.add_elements(self.pods.values().flat_map(|elements| self.known(elements)));
        batch
    }
}

/// What a kernel without nf_tables_bridge answers. After any other error pods are not left unguarded.
fn filters_no_frames(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT))
}

/// Takes both tables away.
pub fn remove(name: &str) -> io::Result<()> {
    let tables = |tables: &[Table]| {
        let mut batch = Batch::new(name);
        tables.iter().for_each(|table| batch.remove_table(*table));
        batch.commit(&Way::default())
    };
    // A kernel that filters no frames at bridges has no table there.
    tables(&[INET, BRIDGE]).or_else(|_| tables(&[INET]))
}

fn elements(pod: &PodRules) -> Vec<Element> {
    let mut found = Vec::new();
    for port in &pod.ports {
        // Loopback is the forwarder's: nothing that came from it may leave it.
        let addresses = pod.addresses.iter().filter(|_| !port.host.is_some_and(|host| host.is_loopback()));
        let fits = addresses.filter(|a| port.host.is_none_or(|host| host.is_ipv4() == a.is_ipv4()));
        found.extend(fits.map(|address| port_element(port, *address)));
    }
    if let Some(hardware_address) = pod.hardware_address {
        let own = interface_name(&pod.interface);
        let element = |set, value: &[u8]| {
            let mut key = own.clone();
            key.extend_from_slice(value);
            key.resize(key.len().next_multiple_of(4), 0);
            Element { table: BRIDGE, set, key, data: None }
        };
        found.push(element(GUARDED, &[]));
        found.push(element(MACS, &hardware_address));
        found.push(element(ADDRESSES_6, &link_local(hardware_address).octets()));
        found.extend(pod.addresses.iter().map(|address| match address {
            IpAddr::V4(address) => element(ADDRESSES_4, &address.octets()),
            IpAddr::V6(address) => element(ADDRESSES_6, &address.octets()),
        }));
    }
    found
}

/// What an interface gives itself (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let [first, second, third, fourth, fifth, sixth] = mac;
    let end = [pair(first ^ 2, second), pair(third, 0xff), pair(0xfe, fourth), pair(fifth, sixth)];
    Ipv6Addr::new(0xfe80, 0, 0, 0, end[0], end[1], end[2], end[3])
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn port_element(port: &PortMapping, address: IpAddr) -> Element {
    let set = match (port.host, address) {
        (None, IpAddr::V4(_)) => PORTS_4,
        (None, IpAddr::V6(_)) => PORTS_6,
        (Some(_), IpAddr::V4(_)) => HOST_PORTS_4,
        (Some(_), IpAddr::V6(_)) => HOST_PORTS_6,
    };
    let word = |bytes: &[u8]| {
        let mut word = bytes.to_vec();
        word.resize(4, 0);
        word
    };
    let mut key = port.host.map(octets).unwrap_or_default();
    key.extend(word(&[port.protocol.number()]));
    key.extend(word(&port.host_port.to_be_bytes()));
    let data = [octets(address), word(&port.pod_port.to_be_bytes())].concat();
    Element { table: INET, set, key, data: Some(data) }
}

fn rule(parts: impl IntoIterator<Item = Vec<Expression>>) -> Vec<Expression> {
    parts.into_iter().flatten().collect()
}

fn of_family(family: u8) -> Vec<Expression> {
    vec![meta(META_NFPROTO, REGISTER), equal(&[family])]
}

/// Where a family has its addresses in the header, and how wide they are.
struct Family {
    number: u8,
    source: u32,
    destination: u32,
    length: u32,
    ports: &'static str,
    host_ports: &'static str,
    /// Beginning of its loopback addresses.
    loopback: &'static [u8],
}

const FAMILIES: [Family; 2] = [
    Family {
        number: FAMILY_IPV4,
        source: 12,
        destination: 16,
        length: 4,
        ports: PORTS_4,
        host_ports: HOST_PORTS_4,
        loopback: &[127],
    },
    Family {
        number: FAMILY_IPV6,
        source: 8,
        destination: 24,
        length: 16,
        ports: PORTS_6,
        host_ports: HOST_PORTS_6,
        loopback: &Ipv6Addr::LOCALHOST.octets(),
    },
];

impl Family {
    fn to_loopback(&self) -> Expression {
        payload(NETWORK_HEADER, self.destination, self.loopback.len() as u32, REGISTER)
    }

    /// The packet goes to the pod whose host port this is.
    fn translate(&self) -> [Vec<Expression>; 2] {
        let port = |word: u32| vec![meta(META_L4PROTO, WORD + word), payload(TRANSPORT_HEADER, 2, 2, WORD + word + 1)];
        let to = |map| vec![mapped(map), destination_nat(self.number, WORD + self.length / 4)];
        let address = vec![payload(NETWORK_HEADER, self.destination, self.length, REGISTER)];
        let at_one = rule([of_family(self.number), address, port(self.length / 4), to(self.host_ports)]);
        let elsewhere = vec![self.to_loopback(), different(self.loopback)];
        let local = to_local().into_iter().collect();
        let at_all = rule([of_family(self.number), local, elsewhere, port(0), to(self.ports)]);
        [at_one, at_all]
    }
}

fn from_range(cidr: Cidr) -> Vec<Expression> {
    let family = &FAMILIES[usize::from(!cidr.base().is_ipv4())];
    let load = payload(NETWORK_HEADER, family.source, family.length, REGISTER);
    rule([of_family(family.number), vec![load, masked(&cidr.mask()), equal(&octets(cidr.base()))]])
}

fn address_translation(batch: &mut Batch<'_>, bridge: &str, cidrs: &[Cidr]) {
    batch.replace_table(INET);
    batch.set(INET, PORTS_4, &SetKind { key: &[PROTOCOL, PORT], data: &[IPV4, PORT] });
    batch.set(INET, PORTS_6, &SetKind { key: &[PROTOCOL, PORT], data: &[IPV6, PORT] });
    batch.set(INET, HOST_PORTS_4, &SetKind { key: &[IPV4, PROTOCOL, PORT], data: &[IPV4, PORT] });
    batch.set(INET, HOST_PORTS_6, &SetKind { key: &[IPV6, PROTOCOL, PORT], data: &[IPV6, PORT] });
    loopback_guard(batch);
    transparent_return(batch);
    for (chain, number) in [("prerouting", PREROUTING), ("output", OUTPUT)] {
        const DESTINATION_NAT: i32 = -100;
        batch.chain(INET, chain, &Hook { kind: "nat", number, priority: DESTINATION_NAT });
        FAMILIES.iter().flat_map(Family::translate).for_each(|rule| batch.rule(INET, chain, rule));
    }
    const SOURCE_NAT: i32 = 100;
    batch.chain(INET, "postrouting", &Hook { kind: "nat", number: POSTROUTING, priority: SOURCE_NAT });
    let out = || meta(META_OIFNAME, REGISTER);
    for cidr in cidrs {
        let away = vec![out(), different(&interface_name(bridge)), masquerade()];
        batch.rule(INET, "postrouting", rule([from_range(*cidr), away]));
        // Through a host port to a pod at the same bridge: its answer must come back through here.
        let changed = DESTINATION_CHANGED.to_ne_bytes();
        let back = vec![out(), equal(&interface_name(bridge)), connection(CT_STATUS), masked(&changed)];
        let hairpin = vec![different(&[0; 4]), masquerade()];
        batch.rule(INET, "postrouting", rule([from_range(*cidr), back, hairpin]));
    }
}

/// Services at the node's loopback addresses are not for pods, also where somebody (kube-proxy, for one) has the kernel
/// route these addresses.
fn loopback_guard(batch: &mut Batch<'_>) {
    const RAW: i32 = -300;
    batch.chain(INET, "loopback", &Hook { kind: "filter", number: PREROUTING, priority: RAW });
    for family in &FAMILIES {
        let outside = vec![meta(META_IIFNAME, REGISTER), different(&interface_name("lo"))];
        let aim = vec![family.to_loopback(), equal(family.loopback), drop_packet()];
        batch.rule(INET, "loopback", rule([of_family(family.number), outside, aim]));
    }
}

/// A connection that the forwarder made in a client's name: what the pod answers is for the forwarder, although the
/// address is somebody else's. The mark leads to a table of routes (`super::Builtin`).
fn transparent_return(batch: &mut Batch<'_>) {
    const MANGLE: i32 = -150;
    let mark = FORWARDED_MARK.to_ne_bytes();
    let load = || meta(META_MARK, REGISTER);
    batch.chain(INET, "forwarded", &Hook { kind: "filter", number: OUTPUT, priority: MANGLE });
    batch.rule(INET, "forwarded", vec![load(), equal(&mark), load(), set_connection_mark()]);
    batch.chain(INET, "returning", &Hook { kind: "filter", number: PREROUTING, priority: MANGLE });
    let answer = vec![connection(CT_DIRECTION), equal(&[1])];
    let ours = vec![connection(CT_MARK), equal(&mark), immediate(&RETURNING_MARK.to_ne_bytes()), set_mark()];
    batch.rule(INET, "returning", rule([answer, ours]));
}

/// 01:80:c2:00:00:00 to :0f, which speak with the next bridge only (IEEE 802.1D).
fn to_link_local() -> Vec<Expression> {
    const GROUP: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];
    const MASK: [u8; 6] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xf0];
    vec![payload(LINK_HEADER, 0, 6, REGISTER), masked(&MASK), equal(&GROUP)]
}

/// The kernel leads some of these frames past the chain of [`guard`], right to the node; on their way it would believe
/// whose they say they are. The others come by there: so the bridge is made (`super::route`).
fn local_input(batch: &mut Batch<'_>) {
    const CHAIN: &str = "local";
    const FIRST: i32 = -300;
    batch.chain(BRIDGE, CHAIN, &Hook { kind: "filter", number: INPUT, priority: FIRST });
    let guarded = vec![meta(META_IIFNAME, REGISTER), member(GUARDED, false)];
    batch.rule(BRIDGE, CHAIN, rule([to_link_local(), guarded, vec![drop_packet()]]));
}

/// Who a frame says it is from is who it is from.
fn guard(batch: &mut Batch<'_>) {
    const CHAIN: &str = "senders";
    const FIRST: i32 = -300;
    batch.replace_table(BRIDGE);
    batch.set(BRIDGE, GUARDED, &SetKind { key: &[INTERFACE], data: &[] });
    batch.set(BRIDGE, MACS, &SetKind { key: &[INTERFACE, ETHER], data: &[] });
    batch.set(BRIDGE, ADDRESSES_4, &SetKind { key: &[INTERFACE, IPV4], data: &[] });
    batch.set(BRIDGE, ADDRESSES_6, &SetKind { key: &[INTERFACE, IPV6], data: &[] });
    batch.chain(BRIDGE, CHAIN, &Hook { kind: "filter", number: PREROUTING, priority: FIRST });
    let kind = |ether_type: u16| vec![payload(LINK_HEADER, 12, 2, REGISTER), equal(&ether_type.to_be_bytes())];
    let unless = |base: u32, offset: u32, length: u32, set: &str| {
        // The name fills the first four words.
        vec![meta(META_IIFNAME, REGISTER), payload(base, offset, length, WORD + 4), member(set, true), drop_packet()]
    };
    const ARP: u16 = 0x0806;
    const IP: u16 = 0x0800;
    const IP6: u16 = 0x86dd;
    const ICMP6: u8 = 58;
    local_input(batch);
    let mut add = |parts: Vec<Vec<Expression>>| batch.rule(BRIDGE, CHAIN, rule(parts));
    add(vec![vec![meta(META_IIFNAME, REGISTER), member(GUARDED, true), accept()]]);
    add(vec![to_link_local(), vec![drop_packet()]]);
    add(vec![unless(LINK_HEADER, 6, 6, MACS)]);
    add(vec![kind(IP), unless(NETWORK_HEADER, 12, 4, ADDRESSES_4)]);
    add(vec![kind(IP), vec![accept()]]);
    // An ARP message says twice who it is from.
    add(vec![kind(ARP), unless(NETWORK_HEADER, 8, 6, MACS)]);
    add(vec![kind(ARP), unless(NETWORK_HEADER, 14, 4, ADDRESSES_4)]);
    add(vec![kind(ARP), vec![accept()]]);
    let icmp6 = || vec![meta(META_L4PROTO, REGISTER), equal(&[ICMP6])];
    let says =
        |number: u8| rule([kind(IP6), icmp6(), vec![payload(TRANSPORT_HEADER, 0, 1, REGISTER), equal(&[number])]]);
    // A pod is no router, and redirects nobody.
    const ROUTER: u8 = 134;
    const SOLICITATION: u8 = 135;
    const NEIGHBOUR: u8 = 136;
    const REDIRECT: u8 = 137;
    add(vec![says(ROUTER), vec![drop_packet()]]);
    add(vec![says(REDIRECT), vec![drop_packet()]]);
    add(vec![says(NEIGHBOUR), unless(TRANSPORT_HEADER, 8, 16, ADDRESSES_6)]);
    // Without an address yet, it asks whether its own is taken; whoever asks for another's keeps that one from it.
    let unspecified = || vec![payload(NETWORK_HEADER, 8, 16, REGISTER), equal(&[0; 16])];
    add(vec![says(SOLICITATION), unspecified(), unless(TRANSPORT_HEADER, 8, 16, ADDRESSES_6)]);
    add(vec![kind(IP6), icmp6(), unspecified(), vec![accept()]]);
    add(vec![kind(IP6), unless(NETWORK_HEADER, 8, 16, ADDRESSES_6)]);
    add(vec![kind(IP6), vec![accept()]]);
    // Neither tags nor tunnels of other kinds, in which an address could hide.
    add(vec![vec![drop_packet()]]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_gives_itself_the_address_of_its_mac() {
        let address = link_local([0x0a, 0x58, 0x0a, 0x55, 0x00, 0x02]);
        assert_eq!(address.to_string(), "fe80::858:aff:fe55:2");
    }

    #[test]
    fn a_port_at_a_loopback_address_is_the_forwarders_alone() {
        let port = |host: Option<&str>| PortMapping {
            protocol: crate::network::ports::Protocol::Tcp,
            host: host.map(|h| h.parse().expect("an address")),
            host_port: 8080,
            pod_port: 80,
        };
        let addresses = ["10.0.0.2", "fd00::2"].map(|a| a.parse().expect("an address")).to_vec();
        let count = |host| {
            let ports = vec![port(host)];
            elements(&PodRules {
                interface: "ck0".into(),
                hardware_address: None,
                addresses: addresses.clone(),
                ports,
                ranges: Vec::new(),
            })
            .len()
        };
        assert_eq!((count(None), count(Some("192.0.2.1")), count(Some("127.0.0.1")), count(Some("::1"))), (2, 1, 0, 0));
    }
}
