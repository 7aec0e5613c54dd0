//! The pod's own files, below its run-time directory and bound into each container: resolv.conf, hostname, hosts.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::pod::error::{PodError, quoted};
use crate::pod::paths;
use crate::proto::cri;
use crate::sys::owners::IdRange;

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
pub(crate) fn of_the_node(resolver: Option<IpAddr>) -> String {
    reachable(copy("/etc/resolv.conf"), resolver)
}

/// Writes all three. `resolver` is where the node's own is reached when its address is a loopback one.
pub(crate) fn write(
    directory: &Path,
    config: &cri::PodSandboxConfig,
    hostname: &str,
    node_network: bool,
    resolver: Option<IpAddr>,
) -> Result<(), PodError> {
    let resolver = match &config.dns_config {
        Some(dns) if *dns != cri::DnsConfig::default() => resolv_conf(dns)?,
        _ => of_the_node(resolver),
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

/// The host's loopback is not the pod's.
fn reachable(text: String, resolver: Option<IpAddr>) -> String {
    let server = |line: &str| line.trim_start().strip_prefix("nameserver").map(|rest| rest.trim().to_owned());
    let is_loopback = |address: String| address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match resolver {
        Some(resolver) if text.lines().filter_map(server).all(is_loopback) => {
            let rest = text.lines().filter(|line| server(line).is_none()).map(|line| format!("{line}\n"));
            rest.chain([format!("nameserver {resolver}\n")]).collect()
        }
        _ => text,
    }
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
        let out: Option<IpAddr> = Some([169, 254, 1, 53].into());
        for (host, resolver, expected) in [
            (
                "search a\nnameserver 127.0.0.53\noptions edns0\n",
                out,
                "search a\noptions edns0\nnameserver 169.254.1.53\n",
            ),
            ("nameserver 127.0.0.53\nnameserver ::1\n", out, "nameserver 169.254.1.53\n"),
            ("nameserver 127.0.0.1\nnameserver 9.9.9.9\n", out, "nameserver 127.0.0.1\nnameserver 9.9.9.9\n"),
            ("nameserver 127.0.0.53\n", None, "nameserver 127.0.0.53\n"),
        ] {
            assert_eq!(reachable(host.to_owned(), resolver), expected, "{host:?}");
        }
    }
}
