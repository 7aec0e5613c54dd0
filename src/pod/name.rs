//! Names of pods and containers as Kubernetes means them: what a repeated request is recognised by.
//!
//! While an object is being made, or when the answer never reached the caller, the same request gets the same
//! object; when it was answered, the name is taken until the object is removed ([`Answered`] knows which).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::pod::error::{PodError, quoted};
use crate::proto::cri;

/// Longest name, namespace or uid that is taken; Kubernetes' own end at 253.
const NAME_LIMIT_BYTES: usize = 512;

/// For an answer to be written to its caller's connection. An answer that is noted too late is harmless: the same call
/// again gets the same object once more.
const UNTIL_SENT: Duration = Duration::from_millis(100);

/// A pod's metadata: one attempt at one pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PodName {
    name: String,
    namespace: String,
    uid: String,
    attempt: u32,
}

impl PodName {
    /// From what a request says.
    pub(crate) fn of(config: &cri::PodSandboxConfig) -> Result<Self, PodError> {
        let metadata = config.metadata.as_ref().ok_or_else(|| PodError::invalid("the pod's metadata is missing"))?;
        let fields = [("name", &metadata.name), ("namespace", &metadata.namespace), ("uid", &metadata.uid)];
        for (field, value) in fields {
            check(&format!("the pod's metadata.{field}"), value, field != "namespace")?;
        }
        Ok(Self {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            attempt: metadata.attempt,
        })
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_{}_{}", self.name, self.namespace, self.uid, self.attempt)
    }
}

/// A container's metadata, unique in its pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ContainerName {
    name: String,
    attempt: u32,
}

impl ContainerName {
    /// From what a request says.
    pub(crate) fn of(config: &cri::ContainerConfig) -> Result<Self, PodError> {
        let metadata =
            config.metadata.as_ref().ok_or_else(|| PodError::invalid("the container's metadata is missing"))?;
        check("the container's metadata.name", &metadata.name, true)?;
        Ok(Self { name: metadata.name.clone(), attempt: metadata.attempt })
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.name, self.attempt)
    }
}

fn check(field: &str, value: &str, required: bool) -> Result<(), PodError> {
    if required && value.is_empty() {
        return Err(PodError::invalid(format!("{field} is empty")));
    }
    if value.len() > NAME_LIMIT_BYTES || value.contains(char::is_control) {
        return Err(PodError::invalid(format!(
            "{field} {:?} is no name: at most {NAME_LIMIT_BYTES} bytes without control characters are expected",
            quoted(value)
        )));
    }
    Ok(())
}

/// Whether the answer to a call that is made once reached its caller. An empty file beside the record, so that a
/// restarted daemon knows it too; it is not synced, because only the daemon's death has to be survived: after a
/// reboot no pod is ready and nobody asks for it again.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    flag: Arc<AtomicBool>,
    marker: PathBuf,
}

impl Answered {
    /// Of a new object.
    pub(crate) fn not_yet(marker: PathBuf) -> Self {
        Self { flag: Arc::default(), marker }
    }

    /// As an earlier daemon left it.
    pub(crate) fn found(marker: PathBuf) -> Self {
        Self { flag: Arc::new(AtomicBool::new(marker.exists())), marker }
    }

    /// See the type.
    pub(crate) fn is_marked(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    /// Called by the caller's own future after the wait: a cancelled call does not come here. The file follows when
    /// the answer has left this process: a daemon that dies before that has answered nobody.
    pub(crate) fn mark(&self) {
        if self.flag.swap(true, Ordering::AcqRel) {
            return;
        }
        let marker = self.marker.clone();
        tokio::spawn(async move {
            tokio::time::sleep(UNTIL_SENT).await;
            // The object may be removed by now; otherwise a retry after a restart gets the object once more.
            if let Err(error) = std::fs::File::create(&marker) {
                tracing::debug!(marker = %marker.display(), %error, "an answer could not be noted");
            }
        });
    }
}

/// Both of a container's.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    pub(crate) created: Answered,
    pub(crate) started: Answered,
}

impl Answers {
    /// Of the container whose record is in `directory`.
    pub(crate) fn not_yet(directory: &Path) -> Self {
        let [created, started] = Self::MARKERS.map(|name| Answered::not_yet(directory.join(name)));
        Self { created, started }
    }

    /// See [`Answered::found`].
    pub(crate) fn found(directory: &Path) -> Self {
        let [created, started] = Self::MARKERS.map(|name| Answered::found(directory.join(name)));
        Self { created, started }
    }

    const MARKERS: [&str; 2] = ["answered", "started"];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str, attempt: u32) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                namespace: "default".into(),
                uid: uid.into(),
                attempt,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_is_named_by_name_namespace_uid_and_attempt() {
        let first = PodName::of(&pod("web", "1", 0)).expect("a name");
        assert_eq!(first.to_string(), "web_default_1_0");
        assert_eq!(first, PodName::of(&pod("web", "1", 0)).expect("a name"));
        assert_ne!(first, PodName::of(&pod("web", "2", 0)).expect("a name"));
        assert_ne!(first, PodName::of(&pod("web", "1", 1)).expect("a name"));
    }

    #[test]
    fn names_do_not_run_into_each_other() {
        let mut one = pod("a_b", "c", 0);
        one.metadata.as_mut().expect("set").namespace = "d".into();
        let mut other = pod("a", "c", 0);
        other.metadata.as_mut().expect("set").namespace = "b_d".into();
        assert_ne!(PodName::of(&one).expect("a name"), PodName::of(&other).expect("a name"));
    }

    #[test]
    fn missing_empty_and_odd_metadata_is_refused() {
        let long = "x".repeat(NAME_LIMIT_BYTES + 1);
        for bad in [pod("", "1", 0), pod("web", "", 0), pod("we\nb", "1", 0), pod(&long, "1", 0)] {
            assert!(PodName::of(&bad).is_err(), "{bad:?}");
        }
        assert!(PodName::of(&cri::PodSandboxConfig::default()).is_err());
        assert!(ContainerName::of(&cri::ContainerConfig::default()).is_err());
    }
}
