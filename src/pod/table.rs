//! Which pods there are: by id, by unique prefix, by name. The only state that pods share; locks are held for a
//! look-up.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot, watch};

use crate::pod::driver::Request;
use crate::pod::error::{PodError, PodErrorKind, quoted};
use crate::pod::name::{Answered, PodName};
use crate::pod::view::{ContainerView, PodView};
use crate::proto::supervisor as wire;
use crate::store::{ContainerId, PodId};

/// A container, with its pod's place and state.
pub(crate) type FoundContainer = (Arc<PodSlot>, Arc<PodView>, Arc<ContainerView>);

/// Shortest prefix that stands for an id.
const PREFIX_DIGITS: usize = 3;
/// Most processes of ExecSync, exec and attach at a time in one pod.
const EXEC_LIMIT: usize = 4096;

/// What everybody may know of a pod.
pub(crate) struct PodSlot {
    pub(crate) id: PodId,
    pub(crate) name: PodName,
    /// To its task.
    pub(crate) requests: mpsc::Sender<Request>,
    /// None until RunPodSandbox is over.
    pub(crate) outcome: watch::Receiver<Option<Result<(), PodError>>>,
    pub(crate) answered: Answered,
    pub(crate) execs: Execs,
    view: watch::Sender<Option<Arc<PodView>>>,
}

impl PodSlot {
    /// Of a pod that is not to be seen yet.
    pub(crate) fn new(
        id: PodId,
        name: PodName,
        requests: mpsc::Sender<Request>,
        outcome: watch::Receiver<Option<Result<(), PodError>>>,
        answered: Answered,
    ) -> Self {
        Self { id, name, requests, outcome, answered, execs: Execs::default(), view: watch::Sender::new(None) }
    }

    /// The last that was published; none: the pod is not up yet.
    pub(crate) fn view(&self) -> Option<Arc<PodView>> {
        self.view.borrow().clone()
    }

    /// Called by the pod's task alone.
    pub(crate) fn publish(&self, view: Arc<PodView>) {
        self.view.send_replace(Some(view));
    }

    /// The exit code of a container once it has ended; none: it, or the pod, was removed.
    pub(crate) async fn exit_code(&self, container: &ContainerId) -> Option<i32> {
        let mut views = self.view.subscribe();
        loop {
            let view = views.borrow_and_update().clone()?;
            let container = view.containers.get(container)?;
            if let Some(exit) = &container.exit {
                return Some(exit.exit_code);
            }
            drop(view);
            views.changed().await.ok()?;
        }
    }
}

/// Who waits for the end of which exec. The pod's task passes the supervisor's events on.
#[derive(Default)]
pub(crate) struct Execs {
    waiting: Mutex<HashMap<String, oneshot::Sender<wire::ExecExit>>>,
}

impl Execs {
    /// Before the exec begins, so that its end cannot be missed.
    pub(crate) fn expect(&self, exec_id: &str) -> Result<oneshot::Receiver<wire::ExecExit>, PodError> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= EXEC_LIMIT {
            let message = format!("{EXEC_LIMIT} commands run in this pod already: try again later");
            return Err(PodError::new(PodErrorKind::ResourceExhausted, message));
        }
        let (sender, receiver) = oneshot::channel();
        waiting.insert(exec_id.to_owned(), sender);
        Ok(receiver)
    }

    /// Nobody waits any more.
    pub(crate) fn forget(&self, exec_id: &str) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(exec_id);
    }

    /// It ended.
    pub(crate) fn ended(&self, exit: wire::ExecExit) {
        let sender = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&exit.exec_id);
        if let Some(sender) = sender {
            let _ = sender.send(exit);
        }
    }

    /// The supervisor is gone: whoever waits learns it by the closed channel.
    pub(crate) fn abandon(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[derive(Default)]
struct Entries {
    pods: BTreeMap<PodId, Arc<PodSlot>>,
    names: HashMap<PodName, PodId>,
    containers: BTreeMap<ContainerId, PodId>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Table {
    entries: RwLock<Entries>,
}

impl Table {
    fn read<T>(&self, look: impl FnOnce(&Entries) -> T) -> T {
        look(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Entries) -> T) -> T {
        change(&mut self.entries.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The pod that has this name, or the one that `make` makes: `true` when it was made.
    pub(crate) fn find_or_insert(&self, name: &PodName, make: impl FnOnce() -> Arc<PodSlot>) -> (Arc<PodSlot>, bool) {
        self.write(|entries| {
            if let Some(slot) = entries.names.get(name).and_then(|id| entries.pods.get(id)) {
                return (Arc::clone(slot), false);
            }
            let slot = make();
            entries.names.insert(name.clone(), slot.id.clone());
            entries.pods.insert(slot.id.clone(), Arc::clone(&slot));
            (slot, true)
        })
    }

    /// Whether the pod is there still.
    pub(crate) fn has(&self, slot: &PodSlot) -> bool {
        self.read(|entries| entries.pods.contains_key(&slot.id))
    }

    /// Frees the pod's id and name and its containers' ids.
    pub(crate) fn remove(&self, slot: &PodSlot) {
        self.write(|entries| {
            entries.pods.remove(&slot.id);
            if entries.names.get(&slot.name) == Some(&slot.id) {
                entries.names.remove(&slot.name);
            }
            entries.containers.retain(|_, pod| *pod != slot.id);
        });
    }

    /// A container is there from now on.
    pub(crate) fn insert_container(&self, container: ContainerId, pod: PodId) {
        self.write(|entries| entries.containers.insert(container, pod));
    }

    /// A container is no more.
    pub(crate) fn remove_container(&self, container: &ContainerId) {
        self.write(|entries| entries.containers.remove(container));
    }

    /// Every pod that is up, in the order of ids.
    pub(crate) fn views(&self) -> Vec<Arc<PodView>> {
        self.read(|entries| entries.pods.values().filter_map(|slot| slot.view()).collect())
    }

    /// By id or unique prefix; a pod that is not up yet is not found.
    pub(crate) fn pod(&self, text: &str) -> Result<(Arc<PodSlot>, Arc<PodView>), PodError> {
        let slot = self.read(|entries| {
            let seen = |slot: &&Arc<PodSlot>| slot.view().is_some();
            let key = find("pod", text, entries.pods.iter().filter(|(_, s)| seen(s)).map(|(id, _)| id))?;
            Ok::<_, PodError>(Arc::clone(&entries.pods[key]))
        })?;
        let view = slot.view().ok_or_else(|| PodError::not_found("pod", text))?;
        Ok((slot, view))
    }

    /// By id or unique prefix.
    pub(crate) fn container(&self, text: &str) -> Result<FoundContainer, PodError> {
        let missing = || PodError::not_found("container", text);
        let (slot, id) = self.read(|entries| {
            let id = find("container", text, entries.containers.keys())?;
            let slot = entries.containers.get(id).and_then(|pod| entries.pods.get(pod));
            slot.map(|slot| (Arc::clone(slot), id.clone())).ok_or_else(missing)
        })?;
        let view = slot.view().ok_or_else(missing)?;
        let container = view.containers.get(&id).cloned().ok_or_else(missing)?;
        Ok((slot, view, container))
    }
}

trait Digits {
    fn digits(&self) -> &str;
}

impl Digits for PodId {
    fn digits(&self) -> &str {
        self.as_str()
    }
}

impl Digits for ContainerId {
    fn digits(&self) -> &str {
        self.as_str()
    }
}

/// The one id that begins with `text`.
fn find<'a, T: Digits>(what: &str, text: &str, ids: impl Iterator<Item = &'a T>) -> Result<&'a T, PodError> {
    if text.len() < PREFIX_DIGITS {
        return Err(PodError::invalid(format!(
            "{:?} is no id of a {what}: at least {PREFIX_DIGITS} digits of one are expected",
            quoted(text)
        )));
    }
    let mut fitting = ids.filter(|id| id.digits().starts_with(text));
    match (fitting.next(), fitting.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(PodError::not_found(what, text)),
        (Some(_), Some(_)) => {
            Err(PodError::invalid(format!("{text:?} is ambiguous: more than one {what} begins with it")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(start: &str) -> ContainerId {
        format!("{start}{}", "0".repeat(64 - start.len())).parse().expect("an id")
    }

    #[test]
    fn a_unique_prefix_of_three_digits_is_an_id() {
        let ids = [id("abc1"), id("abc2"), id("def")];
        let table: [(&str, Result<&ContainerId, PodErrorKind>); 8] = [
            ("def", Ok(&ids[2])),
            ("abc1", Ok(&ids[0])),
            (ids[1].as_str(), Ok(&ids[1])),
            ("abc", Err(PodErrorKind::Invalid)),
            ("", Err(PodErrorKind::Invalid)),
            ("f", Err(PodErrorKind::Invalid)),
            ("de", Err(PodErrorKind::Invalid)),
            ("0123", Err(PodErrorKind::NotFound)),
        ];
        for (text, expected) in table {
            assert_eq!(find("container", text, ids.iter()).map_err(|e| e.kind), expected, "{text:?}");
        }
    }
}
