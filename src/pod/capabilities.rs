//! Which capabilities a container has: the default set, what a request adds and drops, the ambient ones.

use std::collections::BTreeSet;

use crate::pod::error::{PodError, quoted};
use crate::proto::cri;

/// What an ordinary container has; the set that the field has settled on.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability that a kernel may know, in the kernel's order.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Names without `CAP_`. Inheritable is always empty, unless something is ambient, which the kernel
/// only lets be what is inheritable too.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct CapabilitySet {
    /// Bounding, permitted and effective.
    pub(crate) held: BTreeSet<&'static str>,
    /// Ambient and inheritable.
    pub(crate) ambient: BTreeSet<&'static str>,
}

/// Of a request. `available`: the bounding set of our own, beyond which nothing can be given; what a privileged
/// container or `ALL` means is cut to it, a name asked for by itself that is not in it is an error.
pub(crate) fn resolve(
    security: &cri::LinuxContainerSecurityContext,
    available: &BTreeSet<&'static str>,
) -> Result<CapabilitySet, PodError> {
    if security.privileged {
        return Ok(CapabilitySet { held: available.clone(), ambient: BTreeSet::new() });
    }
    let none = cri::Capability::default();
    let wish = security.capabilities.as_ref().unwrap_or(&none);
    let mut held: BTreeSet<&'static str> = DEFAULT.into_iter().filter(|c| available.contains(c)).collect();
    if has_all(&wish.drop_capabilities) {
        held.clear();
    }
    if has_all(&wish.add_capabilities) {
        held = available.clone();
    }
    for text in wish.add_capabilities.iter().chain(&wish.add_ambient_capabilities).filter(|t| !is_all(t)) {
        let name = known(text)?;
        if !available.contains(name) {
            return Err(PodError::precondition(format!("the capability {name} is not to be had on this node")));
        }
        held.insert(name);
    }
    for text in wish.drop_capabilities.iter().filter(|t| !is_all(t)) {
        held.remove(known(text)?);
    }
    let mut ambient = BTreeSet::new();
    for text in &wish.add_ambient_capabilities {
        if is_all(text) {
            ambient.extend(held.iter().copied());
        } else {
            ambient.extend(Some(known(text)?).filter(|c| held.contains(c)));
        }
    }
    Ok(CapabilitySet { held, ambient })
}

/// From the bit mask in /proc/self/status.
pub(crate) fn of_mask(mask: u64) -> BTreeSet<&'static str> {
    ALL.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, name)| *name).collect()
}

fn is_all(text: &str) -> bool {
    text.eq_ignore_ascii_case("ALL") || text.eq_ignore_ascii_case("CAP_ALL")
}

fn has_all(list: &[String]) -> bool {
    list.iter().any(|t| is_all(t))
}

fn known(text: &str) -> Result<&'static str, PodError> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.iter()
        .find(|c| **c == name)
        .copied()
        .ok_or_else(|| PodError::invalid(format!("{:?} is no capability", quoted(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(add: &[&str], drop: &[&str], ambient: &[&str]) -> cri::LinuxContainerSecurityContext {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let capabilities = Some(cri::Capability {
            add_capabilities: strings(add),
            drop_capabilities: strings(drop),
            add_ambient_capabilities: strings(ambient),
        });
        cri::LinuxContainerSecurityContext { capabilities, ..Default::default() }
    }

    fn everything() -> BTreeSet<&'static str> {
        of_mask(u64::MAX)
    }

    #[test]
    fn what_is_added_and_dropped_is_held_and_not_held() {
        let default: BTreeSet<_> = DEFAULT.into_iter().collect();
        let with = |names: &[&'static str]| default.iter().copied().chain(names.iter().copied()).collect();
        let without = |name: &str| default.iter().copied().filter(|c| *c != name).collect();
        let table: [(cri::LinuxContainerSecurityContext, BTreeSet<&str>); 7] = [
            (wish(&[], &[], &[]), default.clone()),
            (wish(&["NET_ADMIN"], &[], &[]), with(&["NET_ADMIN"])),
            (wish(&["cap_net_admin"], &[], &[]), with(&["NET_ADMIN"])),
            (wish(&[], &["CHOWN"], &[]), without("CHOWN")),
            (wish(&[], &["ALL"], &[]), BTreeSet::new()),
            (wish(&["CHOWN"], &["ALL"], &[]), ["CHOWN"].into()),
            (wish(&["ALL"], &["CHOWN"], &[]), everything().into_iter().filter(|c| *c != "CHOWN").collect()),
        ];
        for (security, expected) in table {
            assert_eq!(resolve(&security, &everything()).expect("a set").held, expected, "{security:?}");
        }
    }

    #[test]
    fn ambient_capabilities_are_held_too_and_nothing_is_ambient_unasked() {
        let set = resolve(&wish(&[], &["ALL"], &["NET_BIND_SERVICE"]), &everything()).expect("a set");
        assert_eq!(set.held, ["NET_BIND_SERVICE"].into());
        assert_eq!(set.ambient, set.held);
        assert!(resolve(&wish(&["ALL"], &[], &[]), &everything()).expect("a set").ambient.is_empty());
    }

    #[test]
    fn nothing_is_given_that_we_do_not_have() {
        let few: BTreeSet<_> = ["CHOWN", "KILL"].into();
        assert_eq!(resolve(&wish(&["ALL"], &[], &[]), &few).expect("a set").held, few);
        assert!(resolve(&wish(&["SYS_ADMIN"], &[], &[]), &few).is_err());
        assert!(resolve(&wish(&["SYS_ADMIM"], &[], &[]), &few).is_err());
        let privileged = cri::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        assert_eq!(resolve(&privileged, &few).expect("a set").held, few);
    }

    #[test]
    fn a_mask_is_read_bit_by_bit() {
        assert_eq!(of_mask(0b100001), ["CHOWN", "KILL"].into());
        assert_eq!(everything().len(), ALL.len());
    }
}
