//! What a request wants of the kernel's security modules. Asked for and absent is an error, never silence; what a
//! kubelet sends when nobody asked for anything is nothing.
//!
//! AppArmor comes in two fields, the newer one first: `apparmor`, and the text `apparmor_profile` of older clients
//! (`""`, `runtime/default`, `unconfined`, `localhost/NAME`). A privileged container is unconfined. Loading profiles is
//! the administrator's: nobody in a user namespace could.

use std::collections::BTreeSet;
use std::fs;

use crate::pod::error::{PodError, quoted};
use crate::pod::facts::Facts;
use crate::proto::cri::{self, security_profile::ProfileType};

/// Names of the profiles that the kernel has, a line each; only root may read it.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// What RuntimeDefault means.
const DEFAULT_PROFILE: &str = "cricket-default";
/// In front of a profile's name.
const LOCALHOST: &str = "localhost/";

/// SELinux labels are not applied.
pub(crate) fn refuse_selinux(options: Option<&cri::SeLinuxOption>, facts: &Facts) -> Result<(), PodError> {
    match options.is_some_and(|options| *options != cri::SeLinuxOption::default()) {
        false => Ok(()),
        true if facts.selinux => Err(PodError::unimplemented("SELinux labels of processes are not there yet")),
        true => Err(PodError::precondition("SELinux options are given, but this node has no SELinux")),
    }
}

/// The profile of a container's processes; none: unconfined.
pub(crate) fn apparmor(
    security: &cri::LinuxContainerSecurityContext,
    facts: &Facts,
) -> Result<Option<String>, PodError> {
    let Some(name) = asked(security)?.filter(|_| !security.privileged) else { return Ok(None) };
    if !facts.apparmor {
        return Err(PodError::precondition(format!(
            "the AppArmor profile {:?} is asked for, but this node has no AppArmor",
            quoted(&name)
        )));
    }
    match loaded() {
        Some(loaded) if !loaded.contains(&name) => Err(PodError::precondition(format!(
            "the AppArmor profile {:?} is not loaded on this node: apparmor_parser --replace FILE",
            quoted(&name)
        ))),
        // Where the list cannot be read the kernel says it when the profile is entered.
        _ => Ok(Some(name)),
    }
}

fn asked(security: &cri::LinuxContainerSecurityContext) -> Result<Option<String>, PodError> {
    if let Some(profile) = &security.apparmor {
        return match profile.profile_type() {
            ProfileType::Unconfined => Ok(None),
            ProfileType::RuntimeDefault => Ok(Some(DEFAULT_PROFILE.to_owned())),
            ProfileType::Localhost => named(&profile.localhost_ref).map(Some),
        };
    }
    #[expect(deprecated, reason = "older clients send nothing else")]
    match security.apparmor_profile.as_str() {
        "" | "unconfined" => Ok(None),
        "runtime/default" => Ok(Some(DEFAULT_PROFILE.to_owned())),
        text if text.starts_with(LOCALHOST) => named(text).map(Some),
        text => Err(PodError::invalid(format!(
            "{:?} is no AppArmor profile: runtime/default, unconfined or localhost/NAME",
            quoted(text)
        ))),
    }
}

/// What is written to the kernel is one word.
fn named(text: &str) -> Result<String, PodError> {
    let name = text.strip_prefix(LOCALHOST).unwrap_or(text);
    match name.is_empty() || name.contains(|c: char| c.is_control() || c.is_whitespace()) {
        true => Err(PodError::invalid(format!("{:?} is no name of an AppArmor profile", quoted(text)))),
        false => Ok(name.to_owned()),
    }
}

fn loaded() -> Option<BTreeSet<String>> {
    let text = fs::read_to_string(LOADED).ok()?;
    Some(text.lines().filter_map(|line| line.rsplit_once(" (")).map(|(name, _)| name.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Security = cri::LinuxContainerSecurityContext;

    fn profile(kind: ProfileType, name: &str) -> Security {
        let profile = cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() };
        Security { apparmor: Some(profile), ..Default::default() }
    }

    fn old(text: &str) -> Security {
        #[expect(deprecated, reason = "older clients send nothing else")]
        Security { apparmor_profile: text.to_owned(), ..Default::default() }
    }

    fn facts(present: bool) -> Facts {
        Facts { apparmor: present, selinux: present, ..Facts::read().expect("this machine has facts") }
    }

    #[test]
    fn both_fields_name_the_same_profiles_and_the_newer_one_counts() {
        let default = Some(DEFAULT_PROFILE.to_owned());
        for (security, expected) in [
            (Security::default(), None),
            (profile(ProfileType::Unconfined, ""), None),
            (profile(ProfileType::RuntimeDefault, ""), default.clone()),
            (profile(ProfileType::Localhost, "localhost/mine"), Some("mine".to_owned())),
            (profile(ProfileType::Localhost, "mine"), Some("mine".to_owned())),
            (old("unconfined"), None),
            (old("runtime/default"), default),
            (old("localhost/mine"), Some("mine".to_owned())),
        ] {
            assert_eq!(asked(&security).expect("understood"), expected, "{security:?}");
            let with_older = {
                #[expect(deprecated, reason = "older clients send nothing else")]
                Security { apparmor_profile: "localhost/other".to_owned(), ..security.clone() }
            };
            if security.apparmor.is_some() {
                assert_eq!(asked(&with_older).expect("understood"), asked(&security).expect("understood"));
            }
        }
        for security in [old("mine"), old("localhost/"), profile(ProfileType::Localhost, "a\nb")] {
            assert!(asked(&security).is_err(), "{security:?}");
        }
    }

    #[test]
    fn what_is_asked_for_and_absent_is_an_error_and_nothing_else_is() {
        for security in
            [profile(ProfileType::Localhost, "x"), profile(ProfileType::RuntimeDefault, ""), old("localhost/x")]
        {
            let refused = apparmor(&security, &facts(false)).expect_err("absent").to_string();
            assert!(refused.contains("no AppArmor"), "{refused}");
            let privileged = Security { privileged: true, ..security };
            assert_eq!(apparmor(&privileged, &facts(false)).expect("unconfined"), None);
        }
        assert_eq!(apparmor(&Security::default(), &facts(false)).expect("nothing asked for"), None);
        let level = cri::SeLinuxOption { level: "s0:c1".into(), ..Default::default() };
        for present in [false, true] {
            assert!(refuse_selinux(Some(&level), &facts(present)).is_err(), "never silently without");
            assert!(refuse_selinux(Some(&cri::SeLinuxOption::default()), &facts(present)).is_ok());
        }
    }
}
