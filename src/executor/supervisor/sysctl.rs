//! The pod's kernel settings: an exact list of those that belong to a namespace; everything else is refused, for it
//! would be the machine's.

use std::io::{self, Write};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::fault::{Fault, Result};
use crate::proto::supervisor::{NamespaceMode, SandboxSpec};

/// Settings of the IPC namespace, beside everything below `fs.mqueue.`.
const IPC_NAMES: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];
/// Below which everything belongs to the IPC namespace.
const IPC_PREFIX: &str = "fs/mqueue/";
/// Below which everything belongs to the network namespace.
const NETWORK_PREFIX: &str = "net/";
/// Where the kernel has them.
const ROOT: &str = "/proc/sys";

/// Which namespace a setting belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Ipc,
    Network,
}

/// Writes the settings of `spec`, from inside the pod's namespaces.
pub fn apply(spec: &SandboxSpec) -> Result<()> {
    for (name, value) in &spec.sysctls {
        let path = checked_path(name, spec)?;
        write(&path, value).map_err(|error| refusal(name, value, error))?;
    }
    Ok(())
}

/// By the kernel: mostly the request's fault.
fn refusal(name: &str, value: &str, error: io::Error) -> Fault {
    let text = format!("the kernel does not take {value:?} for the sysctl {name}: {error}");
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::NotFound => Fault::invalid(text),
        io::ErrorKind::PermissionDenied => Fault::state(text + "; it belongs to the machine, not to a pod"),
        _ => Fault::io(text)(error),
    }
}

/// Refuses what is not the pod's own. Answers the path below /proc/sys.
fn checked_path(name: &str, spec: &SandboxSpec) -> Result<String> {
    let path = relative_path(name).ok_or_else(|| Fault::invalid(format!("{name:?} is not the name of a sysctl")))?;
    let owner = owner(&path).ok_or_else(|| {
        Fault::invalid(format!("the sysctl {name} is not a namespace's own; set it on the machine instead"))
    })?;
    let mode = match owner {
        Owner::Ipc => spec.ipc(),
        Owner::Network => spec.network(),
    };
    if mode == NamespaceMode::Node {
        return Err(Fault::invalid(format!(
            "the sysctl {name} would be the node's: the pod has no {owner:?} namespace of its own"
        )));
    }
    Ok(path)
}

/// Both ways of writing a name are known: `net.ipv4.conf.eth0/1.x` (dots separate) and `net/ipv4/conf/eth0.1/x`.
fn relative_path(name: &str) -> Option<String> {
    let slashes_separate = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let swapped = |c| match c {
        '.' if !slashes_separate => '/',
        '/' if !slashes_separate => '.',
        c => c,
    };
    let path: String = name.chars().map(swapped).collect();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '.' | ':' | '@');
    let sound = path.chars().all(allowed) && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    sound.then_some(path)
}

fn owner(path: &str) -> Option<Owner> {
    let below = |prefix: &str| path.len() > prefix.len() && path.starts_with(prefix);
    if below(NETWORK_PREFIX) {
        Some(Owner::Network)
    } else if below(IPC_PREFIX) || IPC_NAMES.iter().any(|name| name.replace('.', "/") == path) {
        Some(Owner::Ipc)
    } else {
        None
    }
}

fn write(path: &str, value: &str) -> std::io::Result<()> {
    let root = rustix::fs::open(ROOT, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatfs(&root)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
        return Err(std::io::Error::other("/proc/sys is not the kernel's own"));
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = rustix::fs::openat2(&root, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    std::fs::File::from(file).write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(network: NamespaceMode, ipc: NamespaceMode) -> SandboxSpec {
        SandboxSpec { network: network.into(), ipc: ipc.into(), ..SandboxSpec::default() }
    }

    #[test]
    fn only_names_that_belong_to_a_namespace_are_taken() {
        let own = spec(NamespaceMode::Pod, NamespaceMode::Pod);
        for good in [
            "net.ipv4.ip_unprivileged_port_start",
            "kernel.shmmax",
            "kernel.sem",
            "fs.mqueue.msg_max",
            "net/ipv4/conf/eth0.1/forwarding",
            "kernel/msgmax",
        ] {
            assert!(checked_path(good, &own).is_ok(), "{good}");
        }
        for bad in [
            "kernel.core_pattern",
            "kernel.shmmax+kernel.core_pattern",
            "net",
            "net.",
            "",
            "kernel.sem.x",
            "net.ipv4/../../kernel/core_pattern",
            "net/../kernel/core_pattern",
            "vm.swappiness",
            "kernel.domainname",
            "net.a=1\nkernel.core_pattern",
            "fs.mqueue.",
            "kernel.hostname",
            "/net/ipv4/x",
        ] {
            assert!(checked_path(bad, &own).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_setting_of_the_node_is_refused() {
        let network_of_node = spec(NamespaceMode::Node, NamespaceMode::Pod);
        assert!(checked_path("net.core.somaxconn", &network_of_node).is_err());
        assert!(checked_path("kernel.shmmax", &network_of_node).is_ok());
        assert!(checked_path("kernel.shmmax", &spec(NamespaceMode::Pod, NamespaceMode::Node)).is_err());
    }
}
