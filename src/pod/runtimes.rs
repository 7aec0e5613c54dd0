//! Runtime handlers: what `[runtimes.NAME]` of the configuration adds to the containers of pods that name it.
//!
//! The record keeps what the client sent; a handler changes what is made of it. Of a base specification only `hooks`
//! and `process.rlimits` count: the rest of a container is told by the CRI. Hooks that the runtime library runs are
//! prestart, createRuntime, createContainer and startContainer; a base specification with others is refused at the
//! daemon's start, so that no hook is left out in silence.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::config::{RuntimeHandler, RuntimeHandlers};
use crate::pod::error::{PodError, quoted};
use crate::pod::limits;
use crate::pod::paths;
use crate::pod::spec::oci;
use crate::proto::cri::{self, SecurityProfile, security_profile::ProfileType};

/// The default, by its own name.
const OWN: &str = "cricket";
/// Largest base specification that is read.
const SPEC_LIMIT_BYTES: u64 = 1 << 20;

/// What is read of a base specification.
#[derive(Debug, Clone, Default, Deserialize)]
struct Base {
    hooks: Option<oci::Hooks>,
    #[serde(default)]
    process: BaseProcess,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct BaseProcess {
    #[serde(default)]
    rlimits: Vec<oci::PosixRlimit>,
}

#[derive(Debug)]
struct Runtime {
    handler: RuntimeHandler,
    base: Base,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Runtimes {
    named: BTreeMap<String, Runtime>,
}

impl Runtimes {
    /// Reads what the configuration names. Blocking.
    pub(crate) fn read(handlers: &RuntimeHandlers) -> Result<Self, PodError> {
        let mut named = BTreeMap::new();
        for (name, handler) in handlers {
            let whom = format!("the runtime handler {name}");
            let wish = cri::LinuxContainerResources {
                unified: handler.limits.clone().into_iter().collect(),
                ..Default::default()
            };
            limits::check(&wish).map_err(|e| e.of(&whom))?;
            let base = handler.base_spec.as_deref().map(read_base).transpose().map_err(|e| e.of(&whom))?;
            named.insert(name.clone(), Runtime { handler: handler.clone(), base: base.unwrap_or_default() });
        }
        Ok(Self { named })
    }

    /// Refuses the name of no handler.
    pub(crate) fn check(&self, name: &str) -> Result<(), PodError> {
        if name.is_empty() || name == OWN || self.named.contains_key(name) {
            return Ok(());
        }
        let known: Vec<&str> = [OWN].into_iter().chain(self.named.keys().map(String::as_str)).collect();
        Err(PodError::invalid(format!(
            "there is no runtime handler {:?} in the configuration: there are {}",
            quoted(name),
            known.join(", ")
        )))
    }

    /// Every name that [`Runtimes::check`] lets pass; the empty one is the default.
    pub(crate) fn names(&self) -> Vec<String> {
        let own = ["", OWN].map(str::to_owned).into_iter();
        own.chain(self.named.keys().filter(|name| *name != OWN).cloned()).collect()
    }

    /// What the handler makes of a request: its defaults where the request names nothing.
    pub(crate) fn request(&self, name: &str, config: &cri::ContainerConfig) -> cri::ContainerConfig {
        let mut config = config.clone();
        let Some(Runtime { handler, .. }) = self.named.get(name) else { return config };
        let linux = config.linux.get_or_insert_default();
        if !handler.limits.is_empty() {
            let unified = &mut linux.resources.get_or_insert_default().unified;
            for (file, value) in &handler.limits {
                unified.entry(file.clone()).or_insert_with(|| value.clone());
            }
        }
        if let Some(profile) = &handler.seccomp {
            let security = linux.security_context.get_or_insert_default();
            if security.seccomp.is_none() {
                security.seccomp = Some(seccomp(profile));
            }
        }
        config
    }

    /// What the base specification adds.
    pub(crate) fn amend(&self, name: &str, spec: &mut oci::Spec) {
        let Some(Runtime { base, .. }) = self.named.get(name) else { return };
        if base.hooks.is_some() {
            spec.set_hooks(base.hooks.clone());
        }
        if let Some(process) = spec.process_mut().as_mut().filter(|_| !base.process.rlimits.is_empty()) {
            process.set_rlimits(Some(base.process.rlimits.iter().map(within_ours).collect()));
        }
    }
}

fn seccomp(profile: &str) -> SecurityProfile {
    let (kind, path) = match profile {
        "runtime/default" => (ProfileType::RuntimeDefault, ""),
        "unconfined" => (ProfileType::Unconfined, ""),
        path => (ProfileType::Localhost, path),
    };
    SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() }
}

fn read_base(path: &Path) -> Result<Base, PodError> {
    let bytes = paths::read_on_node(path, SPEC_LIMIT_BYTES)?;
    let base: Base = serde_json::from_slice(&bytes)
        .map_err(|e| PodError::invalid(format!("the base specification {} is not understood: {e}", path.display())))?;
    if let Some(hooks) = &base.hooks {
        check_hooks(hooks).map_err(|e| e.of(&path.display().to_string()))?;
    }
    Ok(base)
}

/// Refuses hooks that nobody would run.
pub(crate) fn check_hooks(hooks: &oci::Hooks) -> Result<(), PodError> {
    for (name, list) in [("poststart", hooks.poststart()), ("poststop", hooks.poststop())] {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(PodError::invalid(format!("{name} hooks are not run: use createContainer or startContainer")));
        }
    }
    Ok(())
}

/// More than our own hard limit nobody below us can have.
fn within_ours(wish: &oci::PosixRlimit) -> oci::PosixRlimit {
    let ours = resource(wish.typ()).and_then(|r| rustix::process::getrlimit(r).maximum).unwrap_or(u64::MAX);
    let limit = oci::PosixRlimitBuilder::default().typ(wish.typ());
    let limit = limit.hard(wish.hard().min(ours)).soft(wish.soft().min(ours));
    limit.build().expect("every field has a value")
}

fn resource(kind: oci::PosixRlimitType) -> Option<rustix::process::Resource> {
    use oci::PosixRlimitType as Kind;
    use rustix::process::Resource;
    Some(match kind {
        Kind::RlimitNofile => Resource::Nofile,
        Kind::RlimitNproc => Resource::Nproc,
        Kind::RlimitCore => Resource::Core,
        Kind::RlimitMemlock => Resource::Memlock,
        Kind::RlimitStack => Resource::Stack,
        Kind::RlimitSigpending => Resource::Sigpending,
        Kind::RlimitMsgqueue => Resource::Msgqueue,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(base: &str) -> Result<Runtimes, PodError> {
        let path = std::env::temp_dir().join(format!("cricket-base-{}-{}.json", std::process::id(), base.len()));
        std::fs::write(&path, base).expect("written");
        let handler = RuntimeHandler {
            base_spec: Some(path.clone()),
            seccomp: Some("runtime/default".to_owned()),
            limits: [("pids.max".to_owned(), "64".to_owned())].into(),
        };
        let read = Runtimes::read(&[("test-handler".to_owned(), handler)].into());
        std::fs::remove_file(&path).expect("removed");
        read
    }

    #[test]
    fn hooks_and_rlimits_of_the_base_specification_are_added_and_nothing_else() {
        let runtimes = with(
            r#"{"ociVersion": "1.2.0", "hooks": {"createContainer": [{"path": "/bin/true"}]}, "mounts": [],
                "process": {"args": ["x"], "cwd": "/", "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}]}}"#,
        )
        .expect("read");
        let mut process = oci::Process::default();
        process.set_args(Some(vec!["kept".to_owned()])).set_rlimits(None);
        let mut spec = oci::Spec::default();
        spec.set_process(Some(process));
        let mut untouched = spec.clone();
        runtimes.amend("", &mut untouched);
        assert_eq!(untouched, spec);
        runtimes.amend("test-handler", &mut spec);
        assert_eq!(spec.hooks().as_ref().and_then(|h| h.create_container().as_ref()).map(Vec::len), Some(1));
        let process = spec.process().as_ref().expect("one");
        assert_eq!(process.args().as_ref().map(Vec::as_slice), Some(["kept".to_owned()].as_slice()));
        assert_eq!(process.rlimits().as_ref().map(|l| l[0].soft()), Some(64));
    }

    #[test]
    fn a_hook_that_nobody_runs_and_a_file_that_is_no_specification_are_refused() {
        assert!(with(r#"{"hooks": {"poststop": [{"path": "/bin/true"}]}}"#).is_err());
        assert!(with("[]").is_err());
    }

    #[test]
    fn defaults_count_where_the_request_names_nothing() {
        let runtimes = with("{ }").expect("read");
        let made = runtimes.request("test-handler", &cri::ContainerConfig::default());
        let linux = made.linux.expect("linux");
        assert_eq!(linux.resources.expect("limits").unified["pids.max"], "64");
        let seccomp = linux.security_context.and_then(|s| s.seccomp).expect("a profile");
        assert_eq!(seccomp.profile_type(), ProfileType::RuntimeDefault);
        let mut asked = cri::ContainerConfig::default();
        let linux = asked.linux.get_or_insert_default();
        linux.resources.get_or_insert_default().unified.insert("pids.max".into(), "7".into());
        let made = runtimes.request("test-handler", &asked).linux.expect("linux");
        assert_eq!(made.resources.expect("limits").unified["pids.max"], "7");
        assert_eq!(runtimes.request("cricket", &asked), asked);
    }

    #[test]
    fn an_unknown_handler_is_an_error_that_names_the_known_ones() {
        let runtimes = with("{}").expect("read");
        for name in ["", "cricket", "test-handler"] {
            assert!(runtimes.check(name).is_ok(), "{name}");
        }
        let error = runtimes.check("gvisor").expect_err("unknown").to_string();
        assert!(error.contains("gvisor") && error.contains("test-handler"), "{error}");
        assert_eq!(runtimes.names(), ["", "cricket", "test-handler"]);
    }
}
