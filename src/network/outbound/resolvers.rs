//! The host's resolvers, as the drivers find them.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest resolv.conf that is read.
const LIMIT_BYTES: u64 = 1 << 20;

/// The first of each family; unspecified: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostResolvers {
    /// The first of IPv4.
    pub v4: Ipv4Addr,
    /// The first of IPv6.
    pub v6: Ipv6Addr,
}

/// What the host's resolv.conf says now.
pub fn host_resolvers() -> HostResolvers {
    let mut text = String::new();
    let read = File::open("/etc/resolv.conf").and_then(|file| file.take(LIMIT_BYTES).read_to_string(&mut text));
    if read.is_err() {
        text.clear();
    }
    let servers = || text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim);
    HostResolvers {
        v4: servers().find_map(|server| server.parse().ok()).unwrap_or(Ipv4Addr::UNSPECIFIED),
        v6: servers().find_map(|server| server.parse().ok()).unwrap_or(Ipv6Addr::UNSPECIFIED),
    }
}
