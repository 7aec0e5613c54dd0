//! What goes wrong between a configuration, its plugins and us. Texts of plugins are quoted in part and without control
//! characters.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::store::RecordError;

/// Longest piece of a plugin's words in an error.
const QUOTE_LIMIT_CHARS: usize = 1024;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A file of the configuration.
    #[error("the CNI configuration {path}: {problem}")]
    Configuration {
        /// The file or the directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No such program.
    #[error(
        "the CNI plugin {plugin} of network {network} is not in {places}: install it, or name its directory in network.cni_plugin_dirs"
    )]
    NoPlugin {
        /// Its type.
        plugin: String,
        /// The network that asks for it.
        network: String,
        /// Where it was looked for.
        places: String,
    },
    /// It cannot be executed.
    #[error("the CNI plugin {plugin} cannot be started ({program}): {source}")]
    NotStarted {
        /// Its type.
        plugin: String,
        /// The file.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The plugin refused, by an error document.
    #[error("the CNI plugin {plugin} failed ({command}): {message}{details} (code {code})")]
    Refused {
        /// Its type.
        plugin: String,
        /// ADD, DEL, ...
        command: &'static str,
        /// Of the specification below 100, else the plugin's own.
        code: u64,
        /// Its words.
        message: String,
        /// More of them, behind a colon; may be empty.
        details: String,
    },
    /// It ended otherwise than the specification has it.
    #[error("the CNI plugin {plugin} failed ({command}): {problem}")]
    Misbehaved {
        /// Its type.
        plugin: String,
        /// ADD, DEL, ...
        command: &'static str,
        /// What it did.
        problem: String,
    },
    /// It was killed because it took too long.
    #[error(
        "the CNI plugin {plugin} did not end within {patience:?} ({command}) and was killed; network.cni_timeout_seconds allows more"
    )]
    Deadline {
        /// Its type.
        plugin: String,
        /// ADD, DEL, ...
        command: &'static str,
        /// What it was given.
        patience: Duration,
    },
    /// The pod ended meanwhile.
    #[error("the pod has ended: the CNI plugin {plugin} was not waited for")]
    PodEnded {
        /// Its type.
        plugin: String,
    },
    /// The kernel refused a step of ours.
    #[error("CNI: cannot {action}: {source}")]
    Io {
        /// The step.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is kept of a pod's network.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The pod's own wishes.
    #[error("{0}")]
    Request(String),
}

impl CniError {
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action: action.into(), source }
    }

    /// Whether nothing of the plugin ran.
    pub(super) fn is_before_the_plugin_ran(&self) -> bool {
        matches!(self, Self::NoPlugin { .. } | Self::NotStarted { .. })
    }

    /// Whether the same may succeed a little later: code 11 of the specification, STATUS' codes, a deadline.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Refused { code: 11 | 50 | 51, .. } | Self::PodEnded { .. })
    }
}

/// A plugin's words as an error may hold them: one line, bounded.
pub(super) fn quote(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut kept: String = one_line.chars().filter(|c| !c.is_control()).take(QUOTE_LIMIT_CHARS).collect();
    if one_line.chars().nth(QUOTE_LIMIT_CHARS).is_some() {
        kept.push('…');
    }
    kept
}
