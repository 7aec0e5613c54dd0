//! `[runtimes.NAME]`: what a RuntimeClass's handler adds to containers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// Longest name of a handler: those of Kubernetes are labels of DNS.
const NAME_LIMIT_BYTES: usize = 63;

/// One handler. Everything in it may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeHandler {
    /// An OCI specification whose hooks and rlimits every container gets.
    pub base_spec: Option<PathBuf>,
    /// Of containers whose request names none: `runtime/default`, `unconfined`, or the path of a profile.
    pub seccomp: Option<String>,
    /// Files of cgroup v2 and their values, for containers whose request does not name the file.
    #[serde(default)]
    pub limits: BTreeMap<String, String>,
}

/// By name; the default handler has none.
pub type RuntimeHandlers = BTreeMap<String, RuntimeHandler>;

/// Names as Kubernetes has them, paths absolute, limits plain names.
pub(super) fn check(
    handlers: RuntimeHandlers,
    origin: impl Fn(&str) -> String,
) -> Result<RuntimeHandlers, ConfigError> {
    for (name, handler) in &handlers {
        let wrong = |key: &str, message: String| {
            Err(ConfigError::Value { origin: origin(&format!("runtimes.{name}{key}")), message })
        };
        if !is_name(name) {
            return wrong("", "the name of a handler has small letters, digits and hyphens".to_owned());
        }
        if let Some(path) = handler.base_spec.as_ref().filter(|path| !path.is_absolute()) {
            return wrong(".base_spec", format!("{path:?} is not an absolute path"));
        }
        let known =
            |text: &&String| ["runtime/default", "unconfined"].contains(&text.as_str()) || text.starts_with('/');
        if let Some(text) = handler.seccomp.as_ref().filter(|text| !known(text)) {
            return wrong(".seccomp", format!("{text:?} is neither runtime/default, unconfined nor an absolute path"));
        }
    }
    Ok(handlers)
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_LIMIT_BYTES).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(name: &str, handler: RuntimeHandler) -> Result<RuntimeHandlers, ConfigError> {
        check([(name.to_owned(), handler)].into(), |key| format!("/c.toml, key {key}"))
    }

    #[test]
    fn a_handler_is_checked_and_the_fault_is_named_with_its_key() {
        assert!(checked("test-handler", RuntimeHandler::default()).is_ok());
        for name in ["", "-a", "Upper", "a/b", &"x".repeat(64)] {
            assert!(checked(name, RuntimeHandler::default()).is_err(), "{name}");
        }
        let relative = RuntimeHandler { base_spec: Some("base.json".into()), ..Default::default() };
        let error = checked("a", relative).expect_err("relative").to_string();
        assert!(error.contains("runtimes.a.base_spec"), "{error}");
        for (text, fine) in [("runtime/default", true), ("unconfined", true), ("/p.json", true), ("p.json", false)] {
            let handler = RuntimeHandler { seccomp: Some(text.to_owned()), ..Default::default() };
            assert_eq!(checked("a", handler).is_ok(), fine, "{text}");
        }
    }
}
