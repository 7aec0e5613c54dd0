//! The pod's own files, below its run-time directory and bound into each container: resolv.conf, hostname, hosts.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::network::outbound::Resolvers;
use crate::pod::error::{PodError, quoted};
use crate::pod::paths;
use crate::proto::cri;
use crate::sys::owners::IdRange;

/// Of whoever runs this daemon.
const NODES_RESOLV_CONF: &str = "/etc/resolv.conf";
/// Largest resolv.conf or hosts of the node that is copied.
const COPY_LIMIT_BYTES: u64 = 1 << 20;
/// Longest line of a DNS configuration.
const WORD_LIMIT_BYTES: usize = 1024;

/// A directory that nobody else may enter.
pub(crate) fn private_directory(path: &Path) -> Result<(), PodError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| PodError::io(format_args!("create the directory {}", path.display()), &e))
}

/// The name of a pod's own, below its run-time directory.
pub(crate) const RESOLV_CONF: &str = "resolv.conf";

/// Whether the pod has a copy of the node's resolv.conf.
pub(crate) fn has_the_nodes_resolver(config: &cri::PodSandboxConfig) -> bool {
    config.dns_config.as_ref().is_none_or(|dns| *dns == cri::DnsConfig::default())
}

/// The node's resolv.conf as pods get it.
pub(crate) fn of_the_node(resolvers: Option<Resolvers>) -> String {
    reachable(&copy(NODES_RESOLV_CONF), resolvers)
}

/// Writes all three. `resolvers` are where the node's own are reached when their addresses are loopback ones.
pub(crate) fn write(
    directory: &Path,
    config: &cri::PodSandboxConfig,
    hostname: &str,
    node_network: bool,
    resolvers: Option<Resolvers>,
) -> Result<(), PodError> {
    let resolver = match &config.dns_config {
        Some(dns) if *dns != cri::DnsConfig::default() => resolv_conf(&of_this_pod(dns, resolvers))?,
        _ => of_the_node(resolvers),
    };
    let hosts = if node_network { copy("/etc/hosts") } else { hosts(hostname) };
    put(&directory.join(RESOLV_CONF), &resolver)?;
    put(&directory.join("hostname"), &format!("{hostname}\n"))?;
    put(&directory.join("hosts"), &hosts)
}

/// Gives all three to the root of a pod's own user namespace.
pub(crate) fn give_to(directory: &Path, ids: IdRange) -> Result<(), PodError> {
    for path in [RESOLV_CONF, "hostname", "hosts"].map(|name| directory.join(name)) {
        std::os::unix::fs::lchown(&path, Some(ids.first), Some(ids.first))
            .map_err(|e| PodError::io(format_args!("give {} to the pod", path.display()), &e))?;
    }
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<(), PodError> {
    let options = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).to_owned();
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| PodError::io(format_args!("write {}", path.display()), &e))
}

/// The node's own file is often a link (systemd-resolved); a missing or endless one counts as empty.
fn copy(path: &str) -> String {
    let real = fs::canonicalize(path).ok();
    let bytes = real.and_then(|real| paths::read_on_node(&real, COPY_LIMIT_BYTES).ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The host's loopback is not the pod's: a resolver there is asked through the way out.
fn reachable(text: &str, resolvers: Option<Resolvers>) -> String {
    let Some(resolvers) = resolvers else { return text.to_owned() };
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = match server(line).and_then(|server| in_place_of(server, resolvers)) {
            Some(instead) => format!("nameserver {instead}"),
            None => line.to_owned(),
        };
        // Several of one family are one there.
        if server(&line).is_none() || !lines.contains(&line) {
            lines.push(line);
        }
    }
    if !lines.iter().any(|line| server(line).is_some()) {
        // Without one the C library asks 127.0.0.1.
        lines.push(format!("nameserver {}", resolvers.v4));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn server(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("nameserver").map(str::trim)
}

fn in_place_of(server: &str, resolvers: Resolvers) -> Option<IpAddr> {
    match server.parse() {
        Ok(IpAddr::V4(address)) if address.is_loopback() => Some(resolvers.v4.into()),
        Ok(IpAddr::V6(address)) if address.is_loopback() => Some(resolvers.v6.into()),
        _ => None,
    }
}

/// A kubelet in the node copies the node's resolv.conf. A loopback address that stands there is the host's resolver,
/// but for those at which a pod may have one of its own.
fn of_this_pod(dns: &cri::DnsConfig, resolvers: Option<Resolvers>) -> cri::DnsConfig {
    let mut dns = dns.clone();
    let Some(resolvers) = resolvers else { return dns };
    let nodes = copy(NODES_RESOLV_CONF);
    let is_nodes = |wanted: &String| nodes.lines().filter_map(server).any(|server| server == wanted);
    for wanted in &mut dns.servers {
        let pods = matches!(wanted.as_str(), "127.0.0.1" | "::1");
        if let Some(instead) = in_place_of(wanted, resolvers).filter(|_| !pods && is_nodes(wanted)) {
            *wanted = instead.to_string();
        }
    }
    dns
}

fn hosts(hostname: &str) -> String {
    let own = if hostname.is_empty() { String::new() } else { format!("127.0.1.1\t{hostname}\n") };
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}")
}

fn resolv_conf(dns: &cri::DnsConfig) -> Result<String, PodError> {
    for word in dns.servers.iter().chain(&dns.searches).chain(&dns.options) {
        if word.is_empty() || word.len() > WORD_LIMIT_BYTES || word.contains(|c: char| c.is_control()) {
            return Err(PodError::invalid(format!("the DNS configuration holds {:?}", quoted(word))));
        }
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    text.extend(dns.servers.iter().map(|server| format!("nameserver {server}\n")));
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dns_configuration_becomes_a_resolv_conf() {
        let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
        let dns = cri::DnsConfig {
            servers: list(&["10.0.0.10", "::1"]),
            searches: list(&["a.local", "b.local"]),
            options: list(&["ndots:5"]),
        };
        let expected = "search a.local b.local\nnameserver 10.0.0.10\nnameserver ::1\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns).expect("a text"), expected);
        let hostile = cri::DnsConfig { servers: list(&["1.1.1.1\nnameserver 6.6.6.6"]), ..Default::default() };
        assert!(resolv_conf(&hostile).is_err());
    }

    #[test]
    fn a_resolver_on_the_hosts_loopback_is_reached_by_the_way_out() {
        let out = Some(Resolvers { v4: [169, 254, 1, 53].into(), v6: "fd00:2::53".parse().expect("an address") });
        for (host, resolvers, expected) in [
            (
                "search a\nnameserver 127.0.0.53\noptions edns0\n",
                out,
                "search a\nnameserver 169.254.1.53\noptions edns0\n",
            ),
            ("nameserver 127.0.0.53\nnameserver 127.0.0.54\n", out, "nameserver 169.254.1.53\n"),
            ("nameserver ::1\n", out, "nameserver fd00:2::53\n"),
            ("nameserver 127.0.0.1\nnameserver 9.9.9.9\n", out, "nameserver 169.254.1.53\nnameserver 9.9.9.9\n"),
            ("nameserver 9.9.9.9\n", out, "nameserver 9.9.9.9\n"),
            ("search a\n", out, "search a\nnameserver 169.254.1.53\n"),
            ("nameserver 127.0.0.53\n", None, "nameserver 127.0.0.53\n"),
        ] {
            assert_eq!(reachable(host, resolvers), expected, "{host:?}");
        }
    }
}
