//! nftables over nfnetlink: one table, `inet cricket`, replaced as a whole in one transaction.
//!
//! The messages are few and fixed, so they are written here byte by byte (linux/netfilter/nf_tables.h); numbers of
//! the kernel's attributes stand beside their names.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::network::Cidr;

const TABLE: &str = "cricket";
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Subsystem of nf_tables within nfnetlink; also the `res_id` of a transaction.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_SOURCE_NAT: u32 = 100;

const REGISTER: u32 = 1;
const META_NFPROTO: u32 = 15;
const META_OIFNAME: u32 = 7;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_DIFFERENT: u32 = 1;
const PAYLOAD_NETWORK_HEADER: u32 = 1;
const INTERFACE_NAME_BYTES: usize = 16;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 8);
    bytes.extend((value.len() as u16 + 4).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, format!("{value}\0").as_bytes())
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn nested(kind: u16, children: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &children.concat())
}

/// A list element that holds the expression `name` with its attributes.
fn expression(name: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, attributes)])
}

fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    nested(kind, &[attribute(1, bytes)])
}

fn compare(operation: u32, bytes: &[u8]) -> Vec<u8> {
    expression("cmp", &[number(1, REGISTER), number(2, operation), value(3, bytes)])
}

fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)])
}

/// `saddr & mask == base`.
fn from_range(cidr: Cidr) -> Vec<Vec<u8>> {
    let (protocol, offset, base) = match cidr.base() {
        std::net::IpAddr::V4(base) => (NFPROTO_IPV4, 12, base.octets().to_vec()),
        std::net::IpAddr::V6(base) => (NFPROTO_IPV6, 8, base.octets().to_vec()),
    };
    let length = base.len() as u32;
    vec![
        meta(META_NFPROTO),
        compare(COMPARE_EQUAL, &[protocol]),
        expression(
            "payload",
            &[number(1, REGISTER), number(2, PAYLOAD_NETWORK_HEADER), number(3, offset), number(4, length)],
        ),
        expression(
            "bitwise",
            &[
                number(1, REGISTER),
                number(2, REGISTER),
                number(3, length),
                value(4, &cidr.mask()),
                value(5, &vec![0; base.len()]),
            ],
        ),
        compare(COMPARE_EQUAL, &base),
    ]
}

/// Messages of one transaction.
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), sequence: 0 };
        batch.push(BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]);
        batch
    }

    fn push(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[Vec<u8>]) {
        let body = attributes.concat();
        self.sequence += 1;
        self.bytes.extend((20 + body.len() as u32).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
    }

    fn add(&mut self, kind: u16, flags: u16, attributes: &[Vec<u8>]) {
        self.push(kind, flags, NFPROTO_INET, 0, attributes);
    }

    /// Applies all or nothing.
    fn commit(mut self) -> io::Result<()> {
        self.push(BATCH_END, 0, 0, SUBSYSTEM, &[]);
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.send_to(&self.bytes, &SocketAddr::new(0, 0), 0)?;
        // Every answer is queued by the time that the transaction was sent; one message at least asked for one.
        let (answer, _) = socket.recv_from_full()?;
        acknowledged(&answer)?;
        socket.set_non_blocking(true)?;
        while let Ok((answer, _)) = socket.recv_from_full() {
            acknowledged(&answer)?;
        }
        Ok(())
    }
}

/// One NLMSG_ERROR: a failed message's error, or zero.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    const NLMSG_ERROR: u16 = 2;
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::other("the kernel's answer is not understood")),
    }
}

/// What pods of `cidrs` send anywhere but to `bridge` bears the node's address. Replaces what was there.
pub fn masquerade(bridge: &str, cidrs: &[Cidr]) -> io::Result<()> {
    const CHAIN: &str = "postrouting";
    let mut batch = Batch::new();
    let table = [text(1, TABLE)];
    // Made first, so that there is one to delete.
    batch.add(NEW_TABLE, CREATE, &table);
    batch.add(DELETE_TABLE, 0, &table);
    batch.add(NEW_TABLE, CREATE, &table);
    let hook = nested(4, &[number(1, HOOK_POSTROUTING), number(2, PRIORITY_SOURCE_NAT)]);
    batch.add(NEW_CHAIN, CREATE | ACK, &[text(1, TABLE), text(3, CHAIN), hook, text(7, "nat")]);
    let mut name = [0; INTERFACE_NAME_BYTES];
    name[..bridge.len()].copy_from_slice(bridge.as_bytes());
    for cidr in cidrs {
        let mut expressions = from_range(*cidr);
        expressions.extend([meta(META_OIFNAME), compare(COMPARE_DIFFERENT, &name), expression("masq", &[])]);
        batch.add(NEW_RULE, CREATE | APPEND | ACK, &[text(1, TABLE), text(2, CHAIN), nested(4, &expressions)]);
    }
    batch.commit()
}
