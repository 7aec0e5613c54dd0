//! Interface counters of the pod's network namespace, which is this process's own.

use std::fs;

use super::fault::{Fault, Result};
use crate::proto::supervisor::{Interface, NetworkReply};

/// Columns of /proc/net/dev, behind the name: eight received, eight sent.
const COLUMNS: usize = 16;
/// Interfaces that fit into one answer; more are left out.
const INTERFACES_LIMIT: usize = 512;

/// Reads them.
pub fn counters() -> Result<NetworkReply> {
    let text =
        fs::read_to_string("/proc/thread-self/net/dev").map_err(Fault::io("cannot read the pod's interfaces"))?;
    Ok(NetworkReply { interfaces: text.lines().filter_map(parse).take(INTERFACES_LIMIT).collect() })
}

/// One line; headings are none.
fn parse(line: &str) -> Option<Interface> {
    let (name, rest) = line.rsplit_once(':')?;
    let columns: Vec<u64> = rest.split_ascii_whitespace().map_while(|column| column.parse().ok()).collect();
    if columns.len() != COLUMNS {
        return None;
    }
    Some(Interface {
        name: name.trim().to_owned(),
        rx_bytes: columns[0],
        rx_packets: columns[1],
        rx_errors: columns[2],
        rx_dropped: columns[3],
        tx_bytes: columns[8],
        tx_packets: columns[9],
        tx_errors: columns[10],
        tx_dropped: columns[11],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_a_heading_is_not() {
        let line = "  eth0:12345 6 7 8 0 0 0 0 91011 12 13 14 0 0 0 0";
        let interface = parse(line).expect("a line");
        assert_eq!((interface.name.as_str(), interface.rx_bytes, interface.tx_bytes), ("eth0", 12345, 91011));
        assert_eq!((interface.rx_dropped, interface.tx_errors), (8, 13));
        assert_eq!(parse("Inter-|   Receive                    |  Transmit"), None);
        assert_eq!(parse(" face |bytes packets errs"), None);
    }
}
