//! A container's seccomp filter for the processes exec'd in it. It is compiled by the first exec, which passes the program
//! on; later ones only load it (compiling costs more than the rest of an exec).
//!
//! A compiled filter is a memory file: the flags for the kernel (8 bytes), then the program as `sys::filter` has it.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::fs::MemfdFlags;

use super::fault::{Fault, Result};
use super::runtime::{SPEC_FILE, oci};
use crate::sys::filter;

/// Bytes of the flags.
const FLAG_BYTES: usize = 8;
/// Longest compiled filter: the kernel's own limit of 4096 instructions of 8 bytes.
const FILTER_LIMIT_BYTES: u64 = FLAG_BYTES as u64 + 4096 * 8;
/// SECCOMP_FILTER_FLAG_LOG and _SPEC_ALLOW of linux/seccomp.h.
const FLAG_LOG: u64 = 1 << 1;
const FLAG_SPEC_ALLOW: u64 = 1 << 2;

/// A compiled filter.
pub struct Filter {
    flags: u64,
    program: Vec<u8>,
}

impl Filter {
    /// Of the container in `bundle`; also as a memory file.
    pub fn compile(bundle: &Path) -> Result<(Self, OwnedFd)> {
        let spec =
            oci::Spec::load(bundle.join(SPEC_FILE)).map_err(Fault::because("cannot read the container's spec"))?;
        let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let profile = profile.ok_or_else(|| Fault::state("the container has no seccomp filter"))?;
        let memory = rustix::fs::memfd_create("cricket-seccomp", MemfdFlags::CLOEXEC)
            .map_err(Fault::io("cannot make a memory file"))?;
        let mut file = File::from(memory);
        let failed = Fault::because("cannot compile the container's seccomp filter");
        if let Err(error) = file.write_all(&flags(profile).to_ne_bytes()) {
            return Err(failed(error.to_string()));
        }
        if let Err(error) = context(profile).and_then(|context| context.export_bpf(&file)) {
            return Err(failed(error.to_string()));
        }
        let memory = OwnedFd::from(file);
        Ok((Self::load(&memory)?, memory))
    }

    /// From a memory file. Several processes may read it at a time: they share its position, so that is not used.
    pub fn load(memory: &OwnedFd) -> Result<Self> {
        let failed = "cannot read the compiled seccomp filter";
        let file = File::from(memory.try_clone().map_err(Fault::io(failed))?);
        let length = file.metadata().map_err(Fault::io(failed))?.len();
        if length > FILTER_LIMIT_BYTES {
            return Err(Fault::state(failed));
        }
        let mut program = vec![0; length as usize];
        file.read_exact_at(&mut program, 0).map_err(Fault::io(failed))?;
        let Some((flags, instructions)) = program.split_first_chunk::<FLAG_BYTES>() else {
            return Err(Fault::state(failed));
        };
        Ok(Self { flags: u64::from_ne_bytes(*flags), program: instructions.to_vec() })
    }

    /// Holds this process and all that come from it to the filter.
    pub fn install(&self) -> Result<()> {
        filter::install(&self.program, self.flags).map_err(Fault::io("cannot install the container's seccomp filter"))
    }
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

/// A mask is in `valueTwo` and not, as the OCI specification has it, in `value`: libcontainer reads it so, and the author of
/// our specifications writes it so.
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

    #[test]
    fn a_filter_is_compiled_once_and_loaded_by_others() {
        let bundle = std::env::temp_dir().join(format!("cricket-seccomp-{}", std::process::id()));
        std::fs::create_dir_all(&bundle).expect("a directory");
        let spec = r#"{"ociVersion":"1.2.0","root":{"path":"rootfs"},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO",
            "flags":["SECCOMP_FILTER_FLAG_LOG"],"architectures":["SCMP_ARCH_X86_64"],
            "syscalls":[{"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW"}]}}}"#;
        std::fs::write(bundle.join(SPEC_FILE), spec).expect("written");
        let (filter, memory) = Filter::compile(&bundle).expect("compiled");
        std::fs::remove_dir_all(bundle).expect("removed");
        assert_eq!(filter.flags, FLAG_LOG);
        assert!(!filter.program.is_empty() && filter.program.len().is_multiple_of(8));
        for _ in 0..2 {
            assert_eq!(Filter::load(&memory).expect("loaded").program, filter.program);
        }
    }
}
