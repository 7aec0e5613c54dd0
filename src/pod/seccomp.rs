//! Seccomp: the default profile, kept as data in `seccomp.json`, and profiles of the node's (Localhost).
//!
//! `seccomp.json`: what no rule allows fails with `otherwise_errno`. A rule allows (or denies, with an `errno`) names
//! separated by spaces; it counts only when the container holds `capability`, does not hold `without`, is of
//! `architecture`, and the arguments match.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::pod::error::{PodError, quoted};
use crate::pod::paths;
use crate::pod::spec::oci;
use crate::proto::cri;
use crate::proto::cri::security_profile::ProfileType;

/// Largest profile of the node's that is read; the usual ones have some 20 KiB.
const PROFILE_LIMIT_BYTES: u64 = 1 << 20;

/// Arguments of a system call.
const SYSCALL_ARGUMENTS: usize = 6;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    otherwise_errno: u32,
    architectures: HashMap<String, Vec<oci::Arch>>,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
    errno: Option<u32>,
    capability: Option<String>,
    without: Option<String>,
    architecture: Option<String>,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Argument {
    Equal { index: usize, value: u64 },
    NotEqual { index: usize, value: u64 },
    MaskedEqual { index: usize, mask: u64, value: u64 },
}

static DEFAULT: LazyLock<Profile> =
    LazyLock::new(|| serde_json::from_str(include_str!("seccomp.json")).expect("our own profile is well formed"));

/// Of a container with the capabilities `held`; none: unconfined, which is also what no wish at all means.
pub(crate) fn resolve(
    security: &cri::LinuxContainerSecurityContext,
    held: &BTreeSet<&'static str>,
) -> Result<Option<oci::LinuxSeccomp>, PodError> {
    if security.privileged {
        return Ok(None);
    }
    let legacy = security.seccomp_profile_path_wish();
    let Some(wish) = security.seccomp.as_ref().or(legacy.as_ref()) else { return Ok(None) };
    match wish.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => default_profile(held).map(Some),
        ProfileType::Localhost => local_profile(&wish.localhost_ref).map(Some),
    }
}

trait LegacyProfile {
    fn seccomp_profile_path_wish(&self) -> Option<cri::SecurityProfile>;
}

impl LegacyProfile for cri::LinuxContainerSecurityContext {
    /// The field that `seccomp` took the place of.
    #[expect(deprecated, reason = "old clients still send it")]
    fn seccomp_profile_path_wish(&self) -> Option<cri::SecurityProfile> {
        let (kind, path) = match self.seccomp_profile_path.as_str() {
            "" | "unconfined" => return None,
            "runtime/default" | "docker/default" => (ProfileType::RuntimeDefault, ""),
            other => (ProfileType::Localhost, other.strip_prefix("localhost/").unwrap_or(other)),
        };
        Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() })
    }
}

fn local_profile(path: &str) -> Result<oci::LinuxSeccomp, PodError> {
    let path = paths::on_node("the seccomp profile", path.strip_prefix("localhost/").unwrap_or(path))?;
    let bytes = paths::read_on_node(Path::new(&path), PROFILE_LIMIT_BYTES)?;
    let mut profile: oci::LinuxSeccomp = serde_json::from_slice(&bytes)
        .map_err(|e| PodError::invalid(format!("the seccomp profile {} is not understood: {e}", path.display())))?;
    check(&profile).map_err(|fault| PodError::invalid(format!("the seccomp profile {} {fault}", path.display())))?;
    profile.set_syscalls(profile.syscalls().as_ref().map(|rules| rules.iter().map(as_read_by_libcontainer).collect()));
    Ok(profile)
}

/// What is understood and yet cannot be a filter here.
fn check(profile: &oci::LinuxSeccomp) -> Result<(), String> {
    let none = Vec::new();
    let rules = profile.syscalls().as_ref().unwrap_or(&none);
    let actions = rules.iter().map(oci::LinuxSyscall::action).chain([profile.default_action()]);
    if actions.into_iter().any(|action| action == oci::LinuxSeccompAction::ScmpActNotify) {
        return Err("asks for SCMP_ACT_NOTIFY: there is no listener that would answer; use SCMP_ACT_ERRNO".to_owned());
    }
    for rule in rules {
        let arguments = rule.args().iter().flatten();
        if let Some(argument) = arguments.into_iter().find(|argument| argument.index() >= SYSCALL_ARGUMENTS) {
            return Err(format!(
                "has a rule for {} with the argument {}: a call has {SYSCALL_ARGUMENTS}, counted from 0",
                quoted(&rule.names().join(", ")),
                argument.index()
            ));
        }
    }
    Ok(())
}

/// The OCI specification has the mask in `value` and what is compared in `valueTwo`; libcontainer 0.7 reads them the
/// other way round, so that a rule written by the book never matches. Only masked comparisons are concerned.
fn as_read_by_libcontainer(rule: &oci::LinuxSyscall) -> oci::LinuxSyscall {
    let mut rule = rule.clone();
    let swap = |arg: &oci::LinuxSeccompArg| match arg.op() {
        oci::LinuxSeccompOperator::ScmpCmpMaskedEq => {
            masked(arg.index(), arg.value(), arg.value_two().unwrap_or_default())
        }
        _ => *arg,
    };
    // An empty list means no condition, as no list does.
    let args = rule.args().as_ref().filter(|a| !a.is_empty()).map(|args| args.iter().map(swap).collect());
    rule.set_args(args);
    rule
}

fn masked(index: usize, mask: u64, value: u64) -> oci::LinuxSeccompArg {
    let op = oci::LinuxSeccompOperator::ScmpCmpMaskedEq;
    let argument = oci::LinuxSeccompArgBuilder::default().index(index).value(value).value_two(mask).op(op);
    argument.build().expect("every field has a value")
}

fn compare(index: usize, value: u64, op: oci::LinuxSeccompOperator) -> oci::LinuxSeccompArg {
    let argument = oci::LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
    argument.build().expect("every field has a value")
}

fn default_profile(held: &BTreeSet<&'static str>) -> Result<oci::LinuxSeccomp, PodError> {
    let machine = std::env::consts::ARCH;
    let architectures = DEFAULT.architectures.get(machine).cloned().ok_or_else(|| {
        PodError::unimplemented(format!("there is no default seccomp profile for {machine}: use Localhost"))
    })?;
    let counts = |rule: &&Rule| {
        rule.capability.as_deref().is_none_or(|c| held.contains(c))
            && rule.without.as_deref().is_none_or(|c| !held.contains(c))
            && rule.architecture.as_deref().is_none_or(|a| a == machine)
    };
    let mut profile = oci::LinuxSeccomp::default();
    profile
        .set_default_action(oci::LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(DEFAULT.otherwise_errno))
        .set_architectures(Some(architectures))
        .set_syscalls(Some(DEFAULT.rules.iter().filter(counts).map(syscall).collect()));
    Ok(profile)
}

fn syscall(rule: &Rule) -> oci::LinuxSyscall {
    let action = match rule.deny.is_empty() {
        true => oci::LinuxSeccompAction::ScmpActAllow,
        false => oci::LinuxSeccompAction::ScmpActErrno,
    };
    let lines = rule.allow.iter().chain(&rule.deny);
    let names: Vec<String> = lines.flat_map(|line| line.split_whitespace()).map(str::to_owned).collect();
    let args: Vec<_> = rule.args.iter().map(argument).collect();
    let mut syscall = oci::LinuxSyscall::default();
    syscall
        .set_names(names)
        .set_action(action)
        .set_errno_ret(rule.errno)
        .set_args(Some(args).filter(|a| !a.is_empty()));
    syscall
}

fn argument(argument: &Argument) -> oci::LinuxSeccompArg {
    match *argument {
        Argument::Equal { index, value } => compare(index, value, oci::LinuxSeccompOperator::ScmpCmpEq),
        Argument::NotEqual { index, value } => compare(index, value, oci::LinuxSeccompOperator::ScmpCmpNe),
        Argument::MaskedEqual { index, mask, value } => masked(index, mask, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(kind: ProfileType, path: &str) -> cri::LinuxContainerSecurityContext {
        let seccomp = Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path.into() });
        cri::LinuxContainerSecurityContext { seccomp, ..Default::default() }
    }

    fn names(profile: &oci::LinuxSeccomp) -> BTreeSet<String> {
        let rules = profile.syscalls().clone().unwrap_or_default();
        let allowed = rules.iter().filter(|r| r.action() == oci::LinuxSeccompAction::ScmpActAllow);
        allowed.flat_map(|r| r.names().clone()).collect()
    }

    #[test]
    fn nothing_asked_and_unconfined_are_no_filter() {
        let nothing = cri::LinuxContainerSecurityContext::default();
        for security in [nothing, wish(ProfileType::Unconfined, "")] {
            assert_eq!(resolve(&security, &BTreeSet::new()).expect("resolved"), None);
        }
        let privileged =
            cri::LinuxContainerSecurityContext { privileged: true, ..wish(ProfileType::RuntimeDefault, "") };
        assert_eq!(resolve(&privileged, &BTreeSet::new()).expect("resolved"), None);
    }

    #[test]
    fn the_default_profile_widens_with_capabilities() {
        let security = wish(ProfileType::RuntimeDefault, "");
        let plain = names(&resolve(&security, &BTreeSet::new()).expect("resolved").expect("a profile"));
        assert!(plain.contains("read") && plain.contains("clone"));
        for forbidden in ["mount", "unshare", "reboot", "bpf", "keyctl", "kexec_load", "clone3", "io_uring_setup"] {
            assert!(!plain.contains(forbidden), "{forbidden}");
        }
        let admin = names(&resolve(&security, &["SYS_ADMIN"].into()).expect("resolved").expect("a profile"));
        assert!(admin.contains("mount") && admin.contains("clone3"));
    }

    #[test]
    fn a_profile_of_the_nodes_is_read_with_its_masks_turned_round() {
        let path = std::env::temp_dir().join(format!("cricket-seccomp-{}.json", std::process::id()));
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 7, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
        std::fs::write(&path, text).expect("written");
        let path = path.to_str().expect("a text");
        let profile = resolve(&wish(ProfileType::Localhost, path), &BTreeSet::new()).expect("read").expect("a profile");
        let rule = &profile.syscalls().as_ref().expect("rules")[0];
        assert_eq!(rule.args().as_ref().expect("arguments")[0], masked(0, 7, 1));
        std::fs::remove_file(path).expect("removed");
        for bad in [path, "", "relative.json", "/dev/zero"] {
            assert!(resolve(&wish(ProfileType::Localhost, bad), &BTreeSet::new()).is_err(), "{bad}");
        }
    }
}
