//! What is kept of a pod's connection, so that it can be taken down as it was made: also by a later daemon, after a
//! reboot, and after the configuration has changed.
//!
//! ```text
//! ROOT/cni/ID.json   {"version": 1, "pod": ID, "interface": "eth0", "list": {...}, "arguments": {...}, "result": {...}}
//! ```
//!
//! Written before the first plugin runs (without a result), again with the result, removed when every DEL has
//! succeeded: as long as it is there, something may be left of the pod.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::store::{self, PodId};
use crate::sys::directory;

use super::arguments::Arguments;
use super::error::CniError;
use super::list::NetworkList;

/// Layout of the record.
const VERSION: u32 = 1;

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    version: u32,
    /// The container of CNI.
    pub pod: PodId,
    /// Inside the pod.
    pub interface: String,
    /// The configuration with which it was made.
    pub list: NetworkList,
    /// What the plugins were told.
    pub arguments: Arguments,
    /// What the chain's ADD answered.
    pub result: Option<Value>,
}

impl Attachment {
    /// One that is to be made.
    pub fn new(pod: PodId, interface: &str, list: NetworkList, arguments: Arguments) -> Self {
        Self { version: VERSION, pod, interface: interface.to_owned(), list, arguments, result: None }
    }
}

/// Where they are kept.
#[derive(Debug, Clone)]
pub struct Attachments {
    directory: PathBuf,
}

impl Attachments {
    /// In `directory`, which is made when it is needed.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Of one pod; for people and messages too.
    pub fn path(&self, pod: &PodId) -> PathBuf {
        self.directory.join(format!("{pod}.json"))
    }

    /// What there is of `pod`.
    pub fn read(&self, pod: &PodId) -> Result<Option<Attachment>, CniError> {
        match store::read_known(&self.path(pod), VERSION) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Of a pod whose record is damaged: out of the way. Answers where it is.
    pub fn set_aside(&self, pod: &PodId) -> Result<PathBuf, CniError> {
        Ok(store::set_aside(&self.path(pod))?)
    }

    /// Durable when it returns.
    pub fn write(&self, attachment: &Attachment) -> Result<(), CniError> {
        self.prepare()?;
        Ok(store::write(&self.path(&attachment.pod), attachment)?)
    }

    /// That there is none is fine.
    pub fn remove(&self, pod: &PodId) -> Result<(), CniError> {
        Ok(store::remove(&self.path(pod))?)
    }

    /// The pods of which something is kept.
    pub fn pods(&self) -> HashSet<PodId> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return HashSet::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect()
    }

    /// A directory of ours for whatever the plugins keep, where the machine's is not theirs to write.
    pub fn plugins_own(&self) -> Result<PathBuf, CniError> {
        self.prepare()?;
        let own = self.directory.join("plugins");
        make(&own)?;
        Ok(own)
    }

    fn prepare(&self) -> Result<(), CniError> {
        make(&self.directory)
    }
}

fn make(path: &Path) -> Result<(), CniError> {
    directory::make_private(path).map_err(CniError::io(format!("use the directory {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_attachment_is_kept_until_it_is_removed() {
        let directory = std::env::temp_dir().join(format!("cricket-attachments-{}", std::process::id()));
        let kept = Attachments::new(directory.clone());
        let pod = PodId::random();
        assert_eq!(kept.read(&pod).expect("read"), None);
        assert!(kept.pods().is_empty());
        let list = json!({ "name": "n", "cniVersion": "1.0.0", "plugins": [{ "type": "bridge", "mtu": 1400 }] });
        let list: NetworkList = serde_json::from_value(list).expect("a list");
        let arguments = Arguments { text: "A=B".into(), capabilities: Default::default() };
        let mut attachment = Attachment::new(pod.clone(), "eth0", list, arguments);
        kept.write(&attachment).expect("written");
        attachment.result = Some(json!({ "ips": [] }));
        kept.write(&attachment).expect("written again");
        assert_eq!(kept.read(&pod).expect("read"), Some(attachment));
        assert_eq!(kept.pods(), HashSet::from([pod.clone()]));
        fs::write(kept.path(&pod), "{").expect("damaged");
        assert!(kept.read(&pod).is_err());
        kept.remove(&pod).expect("removed");
        kept.remove(&pod).expect("twice");
        fs::remove_dir_all(directory).expect("removed");
    }
}
