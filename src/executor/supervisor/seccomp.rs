//! A container's seccomp profile as a program for the kernel. Compiling costs more than all the rest of a container's
//! creation: it is done once for a profile, see `filters.rs`.

use std::fs::File;
use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::fs::MemfdFlags;
use sha2::{Digest, Sha256};

use super::compaction::compact;
use super::fault::{Fault, Result};
use super::runtime::oci;
use crate::sys::filter;

/// Bytes of the checksum with which a stored filter begins.
const SUM_BYTES: usize = 32;
/// Bytes of the flags that follow; the rest is the program as `sys::filter` has it.
const FLAG_BYTES: usize = 8;
/// Longest stored filter: the kernel's own limit is 4096 instructions of 8 bytes.
pub const STORED_LIMIT_BYTES: u64 = (SUM_BYTES + FLAG_BYTES) as u64 + 4096 * 8;
/// SECCOMP_FILTER_FLAG_LOG and _SPEC_ALLOW of linux/seccomp.h.
const FLAG_LOG: u64 = 1 << 1;
const FLAG_SPEC_ALLOW: u64 = 1 << 2;

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    flags: u64,
    program: Vec<u8>,
}

impl Filter {
    /// Of a profile.
    pub fn compile(profile: &oci::LinuxSeccomp) -> Result<Self> {
        let program = export(profile)?;
        let program = compact(&program).unwrap_or(program);
        Ok(Self { flags: flags(profile), program })
    }

    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = [&self.flags.to_ne_bytes()[..], &self.program].concat();
        [&Sha256::digest(&body)[..], &body].concat()
    }

    /// From what is stored; `None`: it is damaged.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (sum, body) = bytes.split_first_chunk::<SUM_BYTES>()?;
        let (flags, program) = body.split_first_chunk::<FLAG_BYTES>()?;
        let whole = !program.is_empty() && Sha256::digest(body)[..] == sum[..];
        whole.then(|| Self { flags: u64::from_ne_bytes(*flags), program: program.to_vec() })
    }

    /// Holds this process and all that come from it to the filter.
    pub fn install(&self) -> Result<()> {
        filter::install(&self.program, self.flags).map_err(Fault::io("cannot install the container's seccomp filter"))
    }
}

/// As libseccomp compiles it.
pub(super) fn export(profile: &oci::LinuxSeccomp) -> Result<Vec<u8>> {
    let failed = "cannot compile the container's seccomp filter";
    let memory = rustix::fs::memfd_create("cricket-seccomp", MemfdFlags::CLOEXEC)
        .map_err(Fault::io("cannot make a memory file"))?;
    let mut file = File::from(memory);
    context(profile).and_then(|context| context.export_bpf(&file)).map_err(Fault::because(failed))?;
    let mut program = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut program)).map_err(Fault::io(failed))?;
    if program.is_empty() {
        return Err(Fault::state(failed));
    }
    Ok(program)
}

/// Whether somebody outside the container is to decide on some of its calls: libcontainer makes such a filter, for its
/// descriptor has to be passed on.
pub fn has_listener(profile: &oci::LinuxSeccomp) -> bool {
    let notify = |action| action == oci::LinuxSeccompAction::ScmpActNotify;
    profile.listener_path().is_some()
        || notify(profile.default_action())
        || profile.syscalls().iter().flatten().any(|rule| notify(rule.action()))
}

fn flags(profile: &oci::LinuxSeccomp) -> u64 {
    profile.flags().iter().flatten().fold(0, |flags, flag| match flag {
        oci::LinuxSeccompFilterFlag::SeccompFilterFlagLog => flags | FLAG_LOG,
        oci::LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flags | FLAG_SPEC_ALLOW,
        // One thread, no notification: these two change nothing.
        _ => flags,
    })
}

fn context(profile: &oci::LinuxSeccomp) -> std::result::Result<ScmpFilterContext, libseccomp::error::SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut context = ScmpFilterContext::new(default)?;
    for &architecture in profile.architectures().iter().flatten() {
        if let Some(architecture) = arch(architecture) {
            context.add_arch(architecture)?;
        }
    }
    context.set_ctl_nnp(false)?;
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret());
        if action == default {
            continue;
        }
        // A call that this kernel's tables do not know cannot be made either.
        for call in rule.names().iter().filter_map(|name| ScmpSyscall::from_name(name).ok()) {
            add_rule(&mut context, action, call, rule.args().as_deref().unwrap_or_default())?;
        }
    }
    Ok(context)
}

/// Several conditions on one argument are alternatives (as runc has it), on several arguments they hold together.
fn add_rule(
    context: &mut ScmpFilterContext,
    action: ScmpAction,
    call: ScmpSyscall,
    conditions: &[oci::LinuxSeccompArg],
) -> std::result::Result<(), libseccomp::error::SeccompError> {
    let compares: Vec<ScmpArgCompare> =
        conditions.iter().map(|c| ScmpArgCompare::new(c.index() as u32, comparison(c), c.value())).collect();
    let repeated = (1..conditions.len()).any(|i| conditions[..i].iter().any(|c| c.index() == conditions[i].index()));
    match (compares.is_empty(), repeated) {
        (true, _) => context.add_rule(action, call).map(|_| ()),
        (false, true) => compares.iter().try_for_each(|compare| {
            context.add_rule_conditional(action, call, std::slice::from_ref(compare)).map(|_| ())
        }),
        (false, false) => context.add_rule_conditional(action, call, &compares).map(|_| ()),
    }
}

/// A mask is in `valueTwo` and not, as the OCI specification has it, in `value`: libcontainer reads it so, and the
/// author of our specifications writes it so.
fn comparison(condition: &oci::LinuxSeccompArg) -> ScmpCompareOp {
    use oci::LinuxSeccompOperator as Operator;
    match condition.op() {
        Operator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        Operator::ScmpCmpLt => ScmpCompareOp::Less,
        Operator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        Operator::ScmpCmpEq => ScmpCompareOp::Equal,
        Operator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        Operator::ScmpCmpGt => ScmpCompareOp::Greater,
        Operator::ScmpCmpMaskedEq => ScmpCompareOp::MaskedEqual(condition.value_two().unwrap_or(0)),
    }
}

fn action(action: oci::LinuxSeccompAction, errno: Option<u32>) -> ScmpAction {
    use oci::LinuxSeccompAction as Action;
    let errno = errno.map_or(libc::EPERM, |errno| errno as i32);
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActTrace => ScmpAction::Trace(errno as u16),
        Action::ScmpActAllow => ScmpAction::Allow,
        Action::ScmpActLog => ScmpAction::Log,
        // Nobody listens for notifications of an exec'd process: what would ask is refused.
        Action::ScmpActErrno | Action::ScmpActNotify => ScmpAction::Errno(errno),
    }
}

/// `None`: this machine's own, which is always there.
fn arch(arch: oci::Arch) -> Option<ScmpArch> {
    Some(match arch {
        oci::Arch::ScmpArchX86 => ScmpArch::X86,
        oci::Arch::ScmpArchX86_64 => ScmpArch::X8664,
        oci::Arch::ScmpArchX32 => ScmpArch::X32,
        oci::Arch::ScmpArchArm => ScmpArch::Arm,
        oci::Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(call: &str, action: &str) -> oci::LinuxSeccomp {
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","flags":["SECCOMP_FILTER_FLAG_LOG"],"architectures":["SCMP_ARCH_X86_64"],
            "syscalls":[{{"names":["{call}","no_such_call"],"action":"{action}"}}]}}"#
        );
        serde_json::from_str(&text).expect("a profile")
    }

    #[test]
    fn a_filter_survives_storage_and_a_damaged_one_is_noticed() {
        let filter = Filter::compile(&profile("read", "SCMP_ACT_ALLOW")).expect("compiled");
        assert_eq!(filter.flags, FLAG_LOG);
        assert!(filter.program.len().is_multiple_of(8));
        let mut stored = filter.to_bytes();
        assert_eq!(Filter::from_bytes(&stored), Some(filter));
        assert_eq!(Filter::from_bytes(&stored[..stored.len() - 8]), None);
        assert_eq!(Filter::from_bytes(&[]), None);
        *stored.last_mut().expect("not empty") ^= 1;
        assert_eq!(Filter::from_bytes(&stored), None);
    }

    #[test]
    fn a_profile_with_a_listener_is_known() {
        assert!(has_listener(&profile("read", "SCMP_ACT_NOTIFY")));
        assert!(!has_listener(&profile("read", "SCMP_ACT_ALLOW")));
    }
}
