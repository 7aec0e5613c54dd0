//! Interface counters of a pod: /proc/PID/net/dev of its supervisor, which lives in the pod's network namespace. So
//! nobody has to enter it, and the supervisor is not asked.

use std::fs::File;
use std::io::Read;

use crate::proto::cri;

/// Columns behind the name: eight received, eight sent.
const COLUMNS: usize = 16;
/// Interfaces that are told; a pod has two.
const INTERFACES_LIMIT: usize = 128;
/// Longest text that is read.
const TEXT_LIMIT_BYTES: u64 = 64 << 10;
/// What the pod's first interface is called, by us and by plugins.
const DEFAULT_INTERFACE: &str = "eth0";
/// Says nothing of a pod's traffic.
const LOOPBACK: &str = "lo";

/// Counters of one interface since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) received: Direction,
    pub(crate) sent: Direction,
}

/// One way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Direction {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

/// Of the network namespace that `pid` lives in, without the loopback.
pub(crate) fn read(pid: i32) -> Vec<Interface> {
    let mut text = String::new();
    // A supervisor that has ended meanwhile has no network.
    let Ok(file) = File::open(format!("/proc/{pid}/net/dev")) else { return Vec::new() };
    if file.take(TEXT_LIMIT_BYTES).read_to_string(&mut text).is_err() {
        return Vec::new();
    }
    text.lines().filter_map(parse).filter(|i| i.name != LOOPBACK).take(INTERFACES_LIMIT).collect()
}

/// One line; headings are none.
fn parse(line: &str) -> Option<Interface> {
    let (name, rest) = line.rsplit_once(':')?;
    let columns: Vec<u64> = rest.split_ascii_whitespace().map_while(|column| column.parse().ok()).collect();
    let columns: [u64; COLUMNS] = columns.try_into().ok()?;
    let direction = |at: usize| Direction {
        bytes: columns[at],
        packets: columns[at + 1],
        errors: columns[at + 2],
        dropped: columns[at + 3],
    };
    Some(Interface { name: name.trim().to_owned(), received: direction(0), sent: direction(COLUMNS / 2) })
}

/// As CRI has it: the pod's first interface apart from the others.
pub(crate) fn usage(interfaces: &[Interface], at: i64) -> Option<cri::NetworkUsage> {
    let first = interfaces.iter().position(|i| i.name == DEFAULT_INTERFACE).or((!interfaces.is_empty()).then_some(0))?;
    let others = interfaces.iter().enumerate().filter(|(index, _)| *index != first);
    Some(cri::NetworkUsage {
        timestamp: at,
        default_interface: Some(describe(&interfaces[first])),
        interfaces: others.map(|(_, interface)| describe(interface)).collect(),
    })
}

fn describe(interface: &Interface) -> cri::NetworkInterfaceUsage {
    let value = |value: u64| Some(cri::UInt64Value { value });
    cri::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(interface.received.bytes),
        rx_errors: value(interface.received.errors),
        tx_bytes: value(interface.sent.bytes),
        tx_errors: value(interface.sent.errors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_a_heading_is_not() {
        let interface = parse("  eth0:12345 6 7 8 0 0 0 0 91011 12 13 14 0 0 0 0").expect("a line");
        assert_eq!(interface.name, "eth0");
        assert_eq!(interface.received, Direction { bytes: 12345, packets: 6, errors: 7, dropped: 8 });
        assert_eq!(interface.sent, Direction { bytes: 91011, packets: 12, errors: 13, dropped: 14 });
        assert_eq!(parse("Inter-|   Receive                    |  Transmit"), None);
    }

    #[test]
    fn the_first_interface_of_a_pod_is_told_apart() {
        let named = |name: &str| Interface { name: name.into(), ..Default::default() };
        let usage = usage(&[named("net1"), named("eth0")], 3).expect("some");
        assert_eq!(usage.default_interface.expect("one").name, "eth0");
        assert_eq!(usage.interfaces.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["net1"]);
        assert_eq!(super::usage(&[], 3), None);
    }
}
