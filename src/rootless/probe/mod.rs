//! What this machine offers and what it lacks, tried with the real operation. What a try changes is gone with the child
//! that tried it; nothing here asks for a daemon or leaves one.

mod cgroup;
mod kernel;
mod limits;
mod namespaces;
mod network;
mod places;
mod trial;

use serde::Serialize;

use super::NodeKind;
use crate::config::Config;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// There.
    Ok,
    /// Pods run, but something is not as good as it could be.
    Warn,
    /// No pod runs.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// See [`Verdict`].
    pub verdict: Verdict,
    /// What was found and what it means.
    pub meaning: String,
    /// The command, or the steps, that mend it; empty when nothing has to be mended.
    pub mend: String,
}

impl Finding {
    fn ok(name: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Ok, meaning: meaning.into(), mend: String::new() }
    }

    fn warn(name: impl Into<String>, meaning: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Warn, meaning: meaning.into(), mend: mend.into() }
    }

    fn fail(name: impl Into<String>, meaning: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(name, meaning, mend) }
    }
}

/// How the pods' network is tried, by a child that is thrown away; each answers what is wrong.
#[derive(Clone, Copy)]
pub struct NetworkTrial<'a> {
    /// In the network namespace that this process is in, where that is the node's.
    pub here: &'a dyn Fn() -> Result<(), String>,
    /// In one that was made for it.
    pub made: &'a dyn Fn() -> Result<(), String>,
}

/// Everything, in the order in which one would mend it. The caller has one thread.
pub fn all(config: &Config, kind: NodeKind, network: NetworkTrial<'_>) -> Vec<Finding> {
    let mut findings = vec![kernel::features(), kernel::seccomp()];
    findings.extend(places::all(config, kind));
    if kind == NodeKind::Made {
        findings.extend(namespaces::subordinate_ids());
        findings.extend(namespaces::mappers());
    }
    if kind == NodeKind::Found {
        findings.extend(namespaces::found_ids());
    }
    findings.extend(namespaces::tried(&config.root, kind, network));
    findings.extend(cgroup::delegation(kind));
    findings.extend(network::way_out(kind));
    findings.extend(limits::all(kind));
    findings
}

/// Whether pods will run.
pub fn will_run(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict < Verdict::Fail)
}

/// A number that the kernel shows in a file; none where it shows none.
fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Where a program is found, in PATH and where administrators' programs lie.
fn program(name: &str) -> Option<std::path::PathBuf> {
    const MORE: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(MORE.iter().map(Into::into))
        .map(|directory| directory.join(name))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
}
