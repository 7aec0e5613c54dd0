//! A network's plugins, one after the other: each is told the network's name and version, the capability arguments that
//! it says it takes, and the result so far.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::store::PodId;
use crate::sys::process::ProcessId;

use super::arguments::Arguments;
use super::attachment::Attachment;
use super::error::CniError;
use super::list::{NetworkList, Plugin};
use super::places::Places;
use super::plugin::{Call, NAMESPACE_NUMBER};
use super::result::AddResult;
use super::version::Version;

/// The pod's network namespace, as plugins are shown it.
#[derive(Debug)]
pub enum PodNamespace<'a> {
    /// By the number of a process that lives in it, a path that every process of the node can open. The number is the
    /// process's own for as long as a plugin runs: it is looked at before, and the plugin is killed when the process
    /// ends.
    Of(ProcessId),
    /// By a descriptor, when nobody lives in it any more.
    Held(&'a OwnedFd),
    /// It is gone.
    Gone,
}

/// Runs chains.
#[derive(Debug)]
pub struct Chain<'a> {
    /// Where plugins are looked for.
    pub directories: &'a [PathBuf],
    /// What they run in.
    pub places: &'a Places,
    /// How long each may take.
    pub patience: Duration,
}

/// Why a chain's ADD failed.
#[derive(Debug)]
pub struct AddFailure {
    pub error: CniError,
    /// Not even the first plugin was started.
    pub nothing_ran: bool,
}

impl From<CniError> for AddFailure {
    fn from(error: CniError) -> Self {
        Self { error, nothing_ran: false }
    }
}

impl Chain<'_> {
    /// The whole chain's result, and the addresses that it gave the pod.
    pub fn add(
        &self,
        attachment: &Attachment,
        namespace: &PodNamespace<'_>,
    ) -> Result<(AddResult, Vec<IpAddr>), AddFailure> {
        let list = &attachment.list;
        let mut previous: Option<AddResult> = None;
        for plugin in &list.plugins {
            let told = previous.as_ref().map(|result| result.in_version(list.version));
            let output = self.run_for("ADD", attachment, plugin, told, namespace).map_err(|error| {
                let nothing_ran = previous.is_none() && error.is_before_the_plugin_ran();
                AddFailure { error, nothing_ran }
            })?;
            let result = AddResult::parse(&output, list.version);
            previous = Some(result.map_err(|problem| misbehaved(plugin, "ADD", problem))?);
        }
        // A list has a plugin at least; the last one's result is the network's.
        let (Some(result), Some(last)) = (previous, list.plugins.last()) else {
            return Err(CniError::Request(format!("the network {} has no plugin", list.name)).into());
        };
        let addresses = result.pods_addresses().map_err(|problem| misbehaved(last, "ADD", problem))?;
        Ok((result, addresses))
    }

    /// Every plugin is asked, in the reverse order, also after one has failed; the first error is the answer.
    pub fn delete(&self, attachment: &Attachment, namespace: &PodNamespace<'_>) -> Result<(), CniError> {
        let list = &attachment.list;
        let mut outcome = Ok(());
        for plugin in list.plugins.iter().rev() {
            let told = kept_result(attachment).filter(|_| list.version >= Version::V0_4_0);
            outcome = outcome.and(self.run_for("DEL", attachment, plugin, told, namespace).map(drop));
        }
        outcome
    }

    /// That everything is as it was made.
    pub fn check(&self, attachment: &Attachment, namespace: &PodNamespace<'_>) -> Result<(), CniError> {
        let list = &attachment.list;
        if list.version < Version::V0_4_0 || list.disable_check {
            return Ok(());
        }
        let check = |plugin| self.run_for("CHECK", attachment, plugin, kept_result(attachment), namespace).map(drop);
        list.plugins.iter().try_for_each(check)
    }

    /// Has the plugins free whatever belongs to none of these pods.
    pub fn collect_garbage(&self, list: &NetworkList, valid: &[(PodId, String)]) -> Result<(), CniError> {
        if list.version < Version::V1_1_0 || list.disable_gc {
            return Ok(());
        }
        let valid: Vec<Value> =
            valid.iter().map(|(pod, interface)| json!({ "containerID": pod.as_str(), "ifname": interface })).collect();
        let mut outcome = Ok(());
        for plugin in &list.plugins {
            let mut input = configuration(list, plugin);
            input.insert("cni.dev/valid-attachments".to_owned(), valid.clone().into());
            outcome = outcome.and(self.run("GC", list, plugin, input, Vec::new(), &PodNamespace::Gone).map(drop));
        }
        outcome
    }

    /// That pods can be connected: every plugin is there, speaks the list's version as far as it says, and is ready.
    pub fn status(&self, list: &NetworkList) -> Result<(), CniError> {
        for plugin in &list.plugins {
            self.program(list, plugin)?;
            self.speaks(list, plugin)?;
            if list.version >= Version::V1_1_0 {
                let input = configuration(list, plugin);
                self.run("STATUS", list, plugin, input, Vec::new(), &PodNamespace::Gone)?;
            }
        }
        Ok(())
    }

    /// A plugin that does not answer VERSION as the specification has it may still do its work.
    fn speaks(&self, list: &NetworkList, plugin: &Plugin) -> Result<(), CniError> {
        let input = Map::from_iter([("cniVersion".to_owned(), list.version.to_string().into())]);
        let output = match self.run("VERSION", list, plugin, input, Vec::new(), &PodNamespace::Gone) {
            Ok(output) => output,
            Err(error @ CniError::Deadline { .. }) => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "a CNI plugin does not tell its versions");
                return Ok(());
            }
        };
        let Ok(document) = serde_json::from_slice::<Value>(&output) else { return Ok(()) };
        let Some(spoken) = document.get("supportedVersions").and_then(Value::as_array) else { return Ok(()) };
        let wanted = list.version.to_string();
        if spoken.iter().any(|version| version.as_str() == Some(&wanted)) {
            return Ok(());
        }
        let newest = spoken.last().and_then(Value::as_str).unwrap_or("none");
        let problem = format!(
            "it does not speak version {wanted} of CNI, which network {} asks for; its newest is {newest:.20}",
            list.name
        );
        Err(misbehaved(plugin, "VERSION", problem))
    }

    /// A command for one pod.
    fn run_for(
        &self,
        command: &'static str,
        attachment: &Attachment,
        plugin: &Plugin,
        previous: Option<Value>,
        namespace: &PodNamespace<'_>,
    ) -> Result<Vec<u8>, CniError> {
        let mut input = configuration(&attachment.list, plugin);
        let taken = capabilities(plugin, &attachment.arguments);
        if !taken.is_empty() {
            input.insert("runtimeConfig".to_owned(), taken.into());
        }
        input.extend(previous.map(|result| ("prevResult".to_owned(), result)));
        let environment = vec![
            ("CNI_CONTAINERID", attachment.pod.to_string()),
            ("CNI_IFNAME", attachment.interface.clone()),
            ("CNI_ARGS", attachment.arguments.text.clone()),
        ];
        self.run(command, &attachment.list, plugin, input, environment, namespace)
    }

    fn run(
        &self,
        command: &'static str,
        list: &NetworkList,
        plugin: &Plugin,
        input: Map<String, Value>,
        mut environment: Vec<(&'static str, String)>,
        namespace: &PodNamespace<'_>,
    ) -> Result<Vec<u8>, CniError> {
        let program = self.program(list, plugin)?;
        environment.extend(self.places.environment.iter().cloned());
        let directories: Vec<_> = self.directories.iter().map(|dir| dir.to_string_lossy()).collect();
        environment.push(("CNI_PATH", directories.join(":")));
        let (path, passed, holder) = match namespace {
            PodNamespace::Gone => (String::new(), None, None),
            PodNamespace::Held(fd) => (format!("/proc/self/fd/{NAMESPACE_NUMBER}"), Some(fd.as_fd()), None),
            PodNamespace::Of(process) => {
                let pidfd = process.open().map_err(CniError::io("watch the pod's supervisor"))?;
                let pidfd = pidfd.ok_or_else(|| CniError::PodEnded { plugin: plugin.kind.clone() })?;
                (format!("/proc/{}/ns/net", process.pid), None, Some(pidfd))
            }
        };
        environment.push(("CNI_NETNS", path));
        let input = Value::Object(input).to_string().into_bytes();
        let call = Call {
            plugin: &plugin.kind,
            command,
            program: &program,
            environment,
            input,
            passed,
            holder: holder.as_ref().map(AsFd::as_fd),
            namespaces: &self.places.namespaces,
            patience: self.patience,
        };
        call.run()
    }

    fn program(&self, list: &NetworkList, plugin: &Plugin) -> Result<PathBuf, CniError> {
        program(self.directories, list, plugin)
    }
}

/// The first that is there.
pub fn program(directories: &[PathBuf], list: &NetworkList, plugin: &Plugin) -> Result<PathBuf, CniError> {
    let candidates = directories.iter().map(|directory| directory.join(&plugin.kind));
    candidates.into_iter().find(|path| is_program(path)).ok_or_else(|| {
        let places: Vec<_> = directories.iter().map(|dir| dir.display().to_string()).collect();
        let places = places.join(" or ");
        CniError::NoPlugin { plugin: plugin.kind.clone(), network: list.name.clone(), places }
    })
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

fn misbehaved(plugin: &Plugin, command: &'static str, problem: String) -> CniError {
    CniError::Misbehaved { plugin: plugin.kind.clone(), command, problem }
}

fn kept_result(attachment: &Attachment) -> Option<Value> {
    let result = AddResult::of(attachment.result.clone()?, attachment.list.version).ok()?;
    Some(result.in_version(attachment.list.version))
}

/// The plugin's own part of the file, as part of its network.
fn configuration(list: &NetworkList, plugin: &Plugin) -> Map<String, Value> {
    let mut input = plugin.rest.clone();
    input.insert("type".to_owned(), plugin.kind.clone().into());
    input.insert("name".to_owned(), list.name.clone().into());
    input.insert("cniVersion".to_owned(), list.version.to_string().into());
    input
}

fn capabilities(plugin: &Plugin, arguments: &Arguments) -> Map<String, Value> {
    let taken = arguments.capabilities.iter().filter(|(name, _)| plugin.takes(name));
    taken.map(|(name, value)| (name.clone(), value.clone())).collect()
}
