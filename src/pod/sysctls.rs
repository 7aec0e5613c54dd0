//! Which sysctls a pod may set: an exact list of namespaced names.

use std::collections::HashMap;

use crate::pod::error::{PodError, quoted};

/// Longest value; what a kernel takes is far shorter.
const VALUE_LIMIT_BYTES: usize = 1024;

/// Of the IPC namespace.
const IPC: [&str; 13] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "fs.mqueue.msg_default",
    "fs.mqueue.msg_max",
    "fs.mqueue.msgsize_default",
    "fs.mqueue.msgsize_max",
    "fs.mqueue.queues_max",
];

/// Checks each name against the namespaces that the pod has to itself.
pub(crate) fn check(sysctls: &HashMap<String, String>, own_network: bool, own_ipc: bool) -> Result<(), PodError> {
    for (name, value) in sysctls {
        let (allowed, namespace) = match IPC.contains(&name.as_str()) {
            true => (own_ipc, "IPC"),
            false if is_network(name) => (own_network, "network"),
            false => {
                return Err(PodError::invalid(format!("the sysctl {:?} is not one that a pod may set", quoted(name))));
            }
        };
        if !allowed {
            return Err(PodError::invalid(format!(
                "the sysctl {name} needs an {namespace} namespace of the pod's own"
            )));
        }
        if value.len() > VALUE_LIMIT_BYTES || value.contains(|c: char| c.is_control() && c != '\t') {
            return Err(PodError::invalid(format!("the value of the sysctl {name} is no value")));
        }
    }
    Ok(())
}

/// Everything below net is the network namespace's: the kernel hides or write-protects the rest of it there.
fn is_network(name: &str) -> bool {
    let plain =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let parts: Vec<&str> = name.split('.').collect();
    parts.len() >= 3 && parts[0] == "net" && parts.into_iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> HashMap<String, String> {
        [(name.to_owned(), value.to_owned())].into()
    }

    #[test]
    fn namespaced_names_pass_and_nothing_else() {
        for good in ["kernel.shm_rmid_forced", "net.ipv4.ip_forward", "net.core.somaxconn", "fs.mqueue.msg_max"] {
            assert!(check(&one(good, "1"), true, true).is_ok(), "{good}");
        }
        for bad in [
            "kernel.core_pattern",
            "kernel.shm_rmid_forced+kernel.core_pattern",
            "kernel/shm_rmid_forced",
            "net.ipv4.../kernel.core_pattern",
            "net/../kernel/core_pattern",
            "net..x",
            "net",
            "vm.swappiness",
            "fs.mqueue.",
            "",
        ] {
            assert!(check(&one(bad, "1"), true, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_namespace_that_is_the_nodes_is_left_alone() {
        assert!(check(&one("net.ipv4.ip_forward", "1"), false, true).is_err());
        assert!(check(&one("kernel.sem", "1"), true, false).is_err());
    }

    #[test]
    fn a_value_is_one_line() {
        assert!(check(&one("kernel.sem", "250\t32000\t32\t128"), true, true).is_ok());
        assert!(check(&one("kernel.sem", "1\n2"), true, true).is_err());
    }
}
