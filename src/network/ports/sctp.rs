//! SCTP: only the node's rules lead it to a pod. What they cannot lead is refused, since nobody would see that a port
//! is not there.

use std::path::Path;

use super::{PortMapping, PortsError};

/// There with each of the kernel's network namespaces that tell SCTP's connections apart, once addresses are
/// translated.
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established";
/// There as soon as connections are tracked at all.
const TRACKING: &str = "/proc/sys/net/netfilter";

const MADE_NODE: &str = "on the host by an ordinary user's node, which no rule of the host leads to: run the daemon as root, or the pod on the host's network";
const LOOPBACK: &str =
    "at a loopback address, which no rule leads from: name another address of the host, or none, which is all of them";
const UNTRACKED: &str =
    "by this kernel, which does not translate it (CONFIG_NF_CT_PROTO_SCTP): run the pod on the host's network";

/// `made_node`: the node is in a network namespace of its own, and the host outside of it.
pub fn refuse_unserved(port: &PortMapping, made_node: bool) -> Result<(), PortsError> {
    let untranslated = || Path::new(TRACKING).exists() && !Path::new(TRACKED).exists();
    let why = match port.host {
        _ if made_node => MADE_NODE,
        Some(host) if host.is_loopback() => LOOPBACK,
        _ if untranslated() => UNTRACKED,
        _ => return Ok(()),
    };
    Err(PortsError::NotServed { port: *port, why })
}
