//! nftables over nfnetlink: messages, expressions and transactions. What they say is in `rules`.
//!
//! The messages are few and fixed, so they are written here byte by byte (linux/netfilter/nf_tables.h); numbers of
//! the kernel's attributes stand beside their names.

use std::cell::RefCell;
use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};

pub const FAMILY_INET: u8 = 1;
pub const FAMILY_IPV4: u8 = 2;
pub const FAMILY_BRIDGE: u8 = 7;
pub const FAMILY_IPV6: u8 = 10;

/// Subsystem of nf_tables within nfnetlink; also the `res_id` of a transaction.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

/// Elements of one message: their list is an attribute, and no attribute is longer than 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 256;
/// For one transaction; the kernel takes no message that is longer than the socket's buffer.
const SEND_BUFFER_BYTES: usize = 16 << 20;

/// The first register of 16 bytes.
pub const REGISTER: u32 = 1;
/// The first register of 4 bytes: `WORD` + n is n words behind the beginning of `REGISTER`.
pub const WORD: u32 = 8;
const VERDICT_REGISTER: u32 = 0;

pub const META_MARK: u32 = 3;
pub const META_IIFNAME: u32 = 6;
pub const META_OIFNAME: u32 = 7;
pub const META_NFPROTO: u32 = 15;
pub const META_L4PROTO: u32 = 16;
pub const CT_DIRECTION: u32 = 1;
pub const CT_STATUS: u32 = 2;
pub const CT_MARK: u32 = 3;
pub const LINK_HEADER: u32 = 0;
pub const NETWORK_HEADER: u32 = 1;
pub const TRANSPORT_HEADER: u32 = 2;

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

fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    nested(kind, &[attribute(1, bytes)])
}

/// One step of a rule.
pub struct Expression(Vec<u8>);

fn expression(name: &str, attributes: &[Vec<u8>]) -> Expression {
    Expression(nested(1, &[text(1, name), nested(2, attributes)]))
}

fn compare(operation: u32, bytes: &[u8]) -> Expression {
    expression("cmp", &[number(1, REGISTER), number(2, operation), value(3, bytes)])
}

/// What was loaded last equals `bytes` (as far as these go).
pub fn equal(bytes: &[u8]) -> Expression {
    compare(0, bytes)
}

/// See [`equal`].
pub fn different(bytes: &[u8]) -> Expression {
    compare(1, bytes)
}

/// Loads a fact about the packet.
pub fn meta(key: u32, register: u32) -> Expression {
    expression("meta", &[number(1, register), number(2, key)])
}

/// Marks the packet with what was loaded last.
pub fn set_mark() -> Expression {
    expression("meta", &[number(3, REGISTER), number(2, META_MARK)])
}

/// Loads a fact about the connection.
pub fn connection(key: u32) -> Expression {
    expression("ct", &[number(1, REGISTER), number(2, key)])
}

/// Marks the connection with what was loaded last.
pub fn set_connection_mark() -> Expression {
    expression("ct", &[number(4, REGISTER), number(2, CT_MARK)])
}

/// Loads bytes of the packet.
pub fn payload(base: u32, offset: u32, length: u32, register: u32) -> Expression {
    expression("payload", &[number(1, register), number(2, base), number(3, offset), number(4, length)])
}

/// Keeps the bits of `mask` of what was loaded last.
pub fn masked(mask: &[u8]) -> Expression {
    let (length, zeroes) = (mask.len() as u32, vec![0; mask.len()]);
    let registers = [number(1, REGISTER), number(2, REGISTER), number(3, length)];
    expression("bitwise", &[&registers[..], &[value(4, mask), value(5, &zeroes)]].concat())
}

/// The packet's destination is an address of this network namespace.
pub fn to_local() -> [Expression; 2] {
    const RESULT_ADDRESS_TYPE: u32 = 3;
    const OF_DESTINATION: u32 = 2;
    const LOCAL: u32 = 2;
    let load = [number(1, REGISTER), number(2, RESULT_ADDRESS_TYPE), number(3, OF_DESTINATION)];
    [expression("fib", &load), equal(&LOCAL.to_ne_bytes())]
}

/// What was loaded is in `set`, or, inverted, is not.
pub fn member(set: &str, inverted: bool) -> Expression {
    expression("lookup", &[text(1, set), number(2, REGISTER), number(5, u32::from(inverted))])
}

/// What was loaded is a key of `map`; its value is loaded instead.
pub fn mapped(map: &str) -> Expression {
    expression("lookup", &[text(1, map), number(2, REGISTER), number(3, REGISTER)])
}

/// The packet goes to the address in the register, and to the port in `port_register`.
pub fn destination_nat(family: u8, port_register: u32) -> Expression {
    const DESTINATION: u32 = 1;
    let registers = [number(3, REGISTER), number(5, port_register)];
    expression("nat", &[&[number(1, DESTINATION), number(2, family.into())], &registers[..]].concat())
}

/// The packet bears the address of the interface by which it leaves.
pub fn masquerade() -> Expression {
    expression("masq", &[])
}

/// Loads a constant.
pub fn immediate(bytes: &[u8]) -> Expression {
    expression("immediate", &[number(1, REGISTER), value(2, bytes)])
}

fn verdict(code: u32) -> Expression {
    let verdict = nested(2, &[nested(2, &[number(1, code)])]);
    expression("immediate", &[number(1, VERDICT_REGISTER), verdict])
}

/// The packet ends here.
pub fn drop_packet() -> Expression {
    verdict(0)
}

/// The packet is let through, as far as this chain goes.
pub fn accept() -> Expression {
    verdict(1)
}

/// An interface's name as a key.
pub fn interface_name(name: &str) -> Vec<u8> {
    const INTERFACE_NAME_BYTES: usize = 16;
    let mut key = name.as_bytes().to_vec();
    key.resize(INTERFACE_NAME_BYTES, 0);
    key
}

/// A table, by its family: all of a transaction's have one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    pub family: u8,
}

/// Where in the packet's way a chain stands.
pub struct Hook {
    pub kind: &'static str,
    pub number: u32,
    pub priority: i32,
}

/// Types of keys and values as the nft program knows them, with their length: only for those who look.
pub struct SetKind {
    pub key: &'static [(u32, u32)],
    pub data: &'static [(u32, u32)],
}

impl SetKind {
    fn id_and_length(fields: &[(u32, u32)]) -> (u32, u32) {
        const TYPE_BITS: u32 = 6;
        let id = fields.iter().fold(0, |id, (kind, _)| id << TYPE_BITS | kind);
        (id, fields.iter().map(|(_, length)| length.next_multiple_of(4)).sum())
    }
}

/// A member of a set, or an entry of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub table: Table,
    pub set: &'static str,
    pub key: Vec<u8>,
    pub data: Option<Vec<u8>>,
}

fn message(kind: u16, flags: u16, sequence: u32, family: [u8; 2], resource: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = attributes.concat();
    let mut bytes = (20 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(family);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Messages of one transaction.
pub struct Batch<'a> {
    /// Of its tables.
    name: &'a str,
    bytes: Vec<u8>,
    sequence: u32,
    sets: u32,
    /// Where the last message begins.
    last: usize,
}

impl<'a> Batch<'a> {
    /// An empty transaction on tables that are called `name`.
    pub fn new(name: &'a str) -> Self {
        let mut batch = Self { name, bytes: Vec::new(), sequence: 0, sets: 0, last: 0 };
        batch.push(BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]);
        batch
    }

    fn push(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[Vec<u8>]) {
        self.sequence += 1;
        self.last = self.bytes.len();
        self.bytes.extend(message(kind, flags, self.sequence, [family, 0], resource, attributes));
    }

    fn add(&mut self, kind: u16, flags: u16, table: Table, attributes: &[Vec<u8>]) {
        self.push(kind, flags, table.family, 0, attributes);
    }

    /// The table, without what was in it.
    pub fn replace_table(&mut self, table: Table) {
        self.remove_table(table);
        self.add(NEW_TABLE, CREATE, table, &[text(1, self.name)]);
    }

    /// That there is none is fine.
    pub fn remove_table(&mut self, table: Table) {
        let name = [text(1, self.name)];
        // Made first, so that there is one to delete.
        self.add(NEW_TABLE, CREATE, table, &name);
        self.add(DELETE_TABLE, 0, table, &name);
    }

    pub fn chain(&mut self, table: Table, name: &str, hook: &Hook) {
        let place = nested(4, &[number(1, hook.number), number(2, hook.priority as u32)]);
        self.add(NEW_CHAIN, CREATE, table, &[text(1, self.name), text(3, name), place, text(7, hook.kind)]);
    }

    pub fn rule(&mut self, table: Table, chain: &str, expressions: Vec<Expression>) {
        let expressions: Vec<_> = expressions.into_iter().map(|e| e.0).collect();
        let attributes = [text(1, self.name), text(2, chain), nested(4, &expressions)];
        self.add(NEW_RULE, CREATE | APPEND, table, &attributes);
    }

    /// A set, or a map when the kind has data.
    pub fn set(&mut self, table: Table, name: &str, kind: &SetKind) {
        const IS_MAP: u32 = 8;
        self.sets += 1;
        let (key, key_length) = SetKind::id_and_length(kind.key);
        let (data, data_length) = SetKind::id_and_length(kind.data);
        let is_map = data_length > 0;
        let mut attributes =
            vec![text(1, self.name), text(2, name), number(3, if is_map { IS_MAP } else { 0 }), number(4, key)];
        attributes.extend([number(5, key_length), number(10, self.sets)]);
        if is_map {
            attributes.extend([number(6, data), number(7, data_length)]);
        }
        self.add(NEW_SET, CREATE, table, &attributes);
    }

    fn elements<'e>(&mut self, kind: u16, elements: impl Iterator<Item = &'e Element>, bare: bool) {
        let mut sorted: Vec<&Element> = elements.collect();
        sorted.sort_by_key(|element| (element.table.family, element.set));
        for group in sorted.chunk_by(|a, b| (a.table, a.set) == (b.table, b.set)) {
            for part in group.chunks(ELEMENTS_PER_MESSAGE) {
                let list: Vec<_> = part.iter().map(|element| encoded(element, bare)).collect();
                let attributes = [text(1, self.name), text(2, part[0].set), nested(3, &list)];
                let flags = if bare { 0 } else { CREATE };
                self.add(kind, flags, part[0].table, &attributes);
            }
        }
    }

    /// Those that are there already are fine if they say the same.
    pub fn add_elements<'e>(&mut self, elements: impl Iterator<Item = &'e Element>) {
        self.elements(NEW_ELEMENTS, elements, false);
    }

    /// All must be there.
    pub fn remove_elements<'e>(&mut self, elements: impl Iterator<Item = &'e Element>) {
        self.elements(DELETE_ELEMENTS, elements, true);
    }

    /// Applies all or nothing.
    pub fn commit(mut self, way: &Way) -> io::Result<()> {
        self.acknowledge_last();
        self.push(BATCH_END, 0, 0, SUBSYSTEM, &[]);
        let socket = way.take()?;
        socket.send_to(&self.bytes, &SocketAddr::new(0, 0), 0)?;
        // Every answer is queued by the time that the transaction was sent; one message asked for one.
        let (answer, _) = socket.recv_from_full()?;
        acknowledged(&answer)?;
        while let Ok((answer, _)) = socket.recv_from_full() {
            acknowledged(&answer)?;
        }
        // Not after an error: more answers may follow.
        way.0.replace(Some(socket));
        Ok(())
    }

    /// The last message asks for an answer: the kernel's for the end itself came with release 6.10 only.
    fn acknowledge_last(&mut self) {
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            flags.copy_from_slice(&(u16::from_ne_bytes([flags[0], flags[1]]) | ACK).to_ne_bytes());
        }
    }
}

/// The way to the kernel, kept open: when a socket is closed the kernel waits until what transactions removed is freed,
/// tens of milliseconds after a pod's end. In the network namespace of the thread that used it first.
#[derive(Debug, Default)]
pub struct Way(RefCell<Option<Socket>>);

impl Way {
    /// Whether the kernel has the table.
    pub fn has_table(&self, name: &str, table: Table) -> io::Result<bool> {
        let socket = self.take()?;
        let question = message(GET_TABLE, 0, 0, [table.family, 0], 0, &[text(1, name)]);
        socket.send_to(&question, &SocketAddr::new(0, 0), 0)?;
        let (answer, _) = socket.recv_from_full()?;
        let has = match answer.get(4..6) {
            Some(kind) if kind == NEW_TABLE.to_ne_bytes() => true,
            _ => match acknowledged(&answer) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
                other => other.map(|()| true)?,
            },
        };
        self.0.replace(Some(socket));
        Ok(has)
    }

    fn take(&self) -> io::Result<Socket> {
        if let Some(open) = self.0.take() {
            return Ok(open);
        }
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        // Without the right to force it, up to the machine's limit: enough for a thousand pods.
        if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER_BYTES)?;
        }
        Ok(socket)
    }
}

fn encoded(element: &Element, bare: bool) -> Vec<u8> {
    let mut attributes = vec![value(1, &element.key)];
    if let Some(data) = element.data.as_ref().filter(|_| !bare) {
        attributes.push(value(2, data));
    }
    nested(1, &attributes)
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
