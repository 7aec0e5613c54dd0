//! CNI: pods are connected by plugins, programs that an administrator or a network's installer put on the machine.
//!
//! ```text
//! list         the configuration: which file counts, what a chain is     result      what an ADD answers, in any version
//! arguments    what plugins are told of a pod                            attachment  what is kept of a connected pod
//! chain        a command for all plugins of a network                    plugin      one run of one program, bounded
//! places       the namespaces and the environment that they run in
//! ```
//!
//! The order of things: the attachment is on disk, then the plugins run, then the attachment holds their result. It is
//! removed when every DEL has succeeded, and where no plugin could be started. So whatever happens in between, a later daemon knows that there may be
//! something to delete, how it was made, and by which configuration. The pod's namespace is held open until then, so
//! that DEL finds it after the pod has been killed too; nothing is mounted for that.

mod arguments;
mod attachment;
mod chain;
mod error;
mod list;
mod places;
mod plugin;
mod result;
mod version;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};

use crate::store::{PodId, RecordError};
use crate::sys::process::ProcessId;

use super::builtin::stand_in;
use super::{Cidr, POD_INTERFACE, PodNetwork, PodRequest};

use arguments::Arguments;
use attachment::{Attachment, Attachments};
use chain::{AddFailure, Chain, PodNamespace, program};
use places::Places;
use result::AddResult;

pub use error::CniError;
pub use list::NetworkList;

/// Pods that are connected or disconnected at the same time.
const PARALLEL: usize = 8;
/// How long a network that was found ready is taken to be so, and one that was not; a kubelet asks every five seconds.
const READY_FOR: Duration = Duration::from_secs(10);
const NOT_READY_FOR: Duration = Duration::from_secs(2);
/// How long a plugin may take to say whether it is ready, where it may not take less anyway: somebody waits for Status.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);

/// What CNI is told by the daemon.
#[derive(Debug, Clone)]
pub struct CniOptions {
    /// Configurations.
    pub config_dir: PathBuf,
    /// Plugins, in the order in which they are looked for.
    pub plugin_dirs: Vec<PathBuf>,
    /// Where attachments are kept, on disk.
    pub attachments: PathBuf,
    /// How long a plugin may take.
    pub patience: Duration,
}

/// The name of the network that is configured, whose plugins are all there; none where none is configured.
pub fn installed(config_dir: &Path, plugin_dirs: &[PathBuf]) -> Result<Option<String>, CniError> {
    let Some(list) = list::find(config_dir)? else { return Ok(None) };
    for plugin in &list.plugins {
        program(plugin_dirs, &list, plugin)?;
    }
    Ok(Some(list.name))
}

/// Connects pods by plugins. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cni {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: CniOptions,
    attachments: Attachments,
    node: OwnedFd,
    places: Mutex<Option<Arc<Places>>>,
    /// Namespaces of pods that are connected.
    held: Mutex<HashMap<PodId, Arc<Held>>>,
    /// The configuration that was seen last.
    seen: Mutex<Option<NetworkList>>,
    ready: tokio::sync::Mutex<Option<Readiness>>,
    turns: Arc<Semaphore>,
}

/// A pod's namespace, open, and a process that lives in it for as long as the pod does.
#[derive(Debug)]
struct Held {
    namespace: OwnedFd,
    holder: ProcessId,
}

/// What a network's plugins said of themselves.
#[derive(Debug)]
struct Readiness {
    list: NetworkList,
    at: Instant,
    outcome: Result<(), String>,
}

impl Readiness {
    fn holds_for(&self, list: &NetworkList) -> bool {
        let limit = if self.outcome.is_ok() { READY_FOR } else { NOT_READY_FOR };
        self.list == *list && self.at.elapsed() < limit
    }
}

/// A holder of the lock that panicked left whole values behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cni {
    /// Nothing is read or made yet. `node` is the node's network namespace.
    pub fn new(options: CniOptions, node: OwnedFd) -> Self {
        let shared = Shared {
            attachments: Attachments::new(options.attachments.clone()),
            options,
            node,
            places: Mutex::default(),
            held: Mutex::default(),
            seen: Mutex::default(),
            ready: tokio::sync::Mutex::default(),
            turns: Arc::new(Semaphore::new(PARALLEL)),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The network that is configured now; none: the built-in one is to be used.
    pub fn configured(&self) -> Result<Option<NetworkList>, CniError> {
        let found = list::find(&self.shared.options.config_dir)?;
        let mut seen = lock(&self.shared.seen);
        if *seen != found {
            match &found {
                Some(list) => {
                    tracing::info!(network = list.name, version = %list.version, "new pods are connected by CNI")
                }
                None => tracing::info!("there is no CNI configuration any more: new pods are on the built-in network"),
            }
            seen.clone_from(&found);
        }
        Ok(found)
    }

    /// Why pods cannot be connected by `list` now. Callers at the same time share one answer.
    pub async fn check_ready(&self, list: &NetworkList) -> Result<(), String> {
        let mut ready = self.shared.ready.lock().await;
        if let Some(known) = ready.as_ref().filter(|known| known.holds_for(list)) {
            return known.outcome.clone();
        }
        let asked = list.clone();
        let patience = self.shared.options.patience.min(STATUS_PATIENCE);
        let answer = self.in_thread(false, move |shared| shared.chain()?.run(patience, |chain| chain.status(&asked)));
        let outcome = answer.await.map_err(|error| error.to_string());
        *ready = Some(Readiness { list: list.clone(), at: Instant::now(), outcome: outcome.clone() });
        outcome
    }

    /// Connects a pod. After an error something may be left, which [`Cni::tear_down`] takes away.
    pub async fn set_up(
        &self,
        list: NetworkList,
        request: PodRequest,
        ranges: &[Cidr],
    ) -> Result<PodNetwork, CniError> {
        let arguments = Arguments::of(&request.id, &request.config, &list.name, ranges)?;
        let attachment = Attachment::new(request.id, POD_INTERFACE, list, arguments);
        let held = Arc::new(Held { namespace: request.namespace, holder: request.holder });
        self.in_thread(true, move |shared| shared.connect(attachment, held)).await
    }

    /// Takes note of a pod that plugins connected for an earlier daemon.
    pub fn adopt(&self, pod: &PodId, namespace: OwnedFd, holder: ProcessId) {
        lock(&self.shared.held).insert(pod.clone(), Arc::new(Held { namespace, holder }));
    }

    /// Has the plugins disconnect a pod that has ended, as they connected it. Answers whether they had. After an error
    /// it is to be tried again, by this daemon or a later one.
    pub async fn tear_down(&self, pod: &PodId) -> Result<bool, CniError> {
        if !self.shared.attachments.path(pod).exists() {
            return Ok(false);
        }
        let pod = pod.clone();
        self.in_thread(true, move |shared| shared.disconnect(&pod)).await.map(|()| true)
    }

    /// That a pod's connection is as it was made.
    pub async fn check(&self, pod: &PodId) -> Result<(), CniError> {
        let pod = pod.clone();
        self.in_thread(true, move |shared| shared.check(&pod)).await
    }

    /// After a start: disconnects what belongs to no pod of `known`, and has the plugins of the network that is
    /// configured free what else nobody has. What fails is told in the log and tried again at the next start.
    pub async fn collect_garbage(&self, known: &HashSet<PodId>) {
        for pod in self.shared.attachments.pods().into_iter().filter(|pod| !known.contains(pod)) {
            match self.tear_down(&pod).await {
                Ok(_) => tracing::info!(%pod, "the network of a pod that is no more was taken down"),
                Err(error) => {
                    tracing::warn!(%pod, %error, "the network of a pod that is no more could not be taken down")
                }
            }
        }
        let Ok(Some(list)) = self.configured() else { return };
        if let Err(error) = self.in_thread(true, move |shared| shared.collect_garbage(&list)).await {
            tracing::warn!(%error, "what CNI plugins keep for pods that are no more was not wholly freed");
        }
    }

    /// Of the pods that are connected, those whose plugins find something amiss.
    pub async fn check_all(&self) {
        let pods: Vec<PodId> = lock(&self.shared.held).keys().cloned().collect();
        for pod in pods {
            if let Err(error) = self.check(&pod).await {
                tracing::warn!(%pod, %error, "a pod's network is not as it was made");
            }
        }
    }

    /// Runs what blocks in a thread of its own, which plugins do not outlive; at most a few that hold a turn.
    async fn in_thread<T: Send + 'static>(
        &self,
        takes_turn: bool,
        work: impl FnOnce(&Shared) -> Result<T, CniError> + Send + 'static,
    ) -> Result<T, CniError> {
        let turn = match takes_turn {
            true => Some(Arc::clone(&self.shared.turns).acquire_owned().await.map_err(|_| ended())?),
            false => None,
        };
        let shared = Arc::clone(&self.shared);
        let (done, outcome) = oneshot::channel();
        let thread = std::thread::Builder::new().name("cni".to_owned()).spawn(move || {
            let result = work(&shared);
            drop(turn);
            let _ = done.send(result);
        });
        thread.map_err(CniError::io("start a thread for plugins"))?;
        outcome.await.map_err(|_| ended())?
    }
}

/// See [`stand_in`]. Without it plugins are asked all the same, and free what they find without.
fn stand_in_for(attachment: &Attachment, held: Option<&OwnedFd>) -> Option<OwnedFd> {
    let result = AddResult::of(attachment.result.clone()?, attachment.list.version).ok()?;
    let made = stand_in(held, &attachment.interface, &result.addresses());
    let told = |error: &_| tracing::warn!(pod = %attachment.pod, %error, "plugins may leave rules of a pod whose interface is gone");
    made.inspect_err(told).ok().flatten()
}

fn ended() -> CniError {
    CniError::io("run plugins")(std::io::Error::other("the thread ended by a defect"))
}

/// A chain with what it borrows.
struct Prepared<'a> {
    shared: &'a Shared,
    places: Arc<Places>,
}

impl Prepared<'_> {
    fn run<T>(&self, patience: Duration, work: impl FnOnce(&Chain<'_>) -> T) -> T {
        work(&Chain { directories: &self.shared.options.plugin_dirs, places: &self.places, patience })
    }
}

impl Shared {
    fn chain(&self) -> Result<Prepared<'_>, CniError> {
        let mut places = lock(&self.places);
        let prepared = match &*places {
            Some(prepared) => Arc::clone(prepared),
            None => {
                Arc::clone(places.insert(Arc::new(Places::prepare(&self.node, || self.attachments.plugins_own())?)))
            }
        };
        Ok(Prepared { shared: self, places: prepared })
    }

    fn connect(&self, mut attachment: Attachment, held: Arc<Held>) -> Result<PodNetwork, CniError> {
        let chain = self.chain()?;
        attachment
            .list
            .plugins
            .iter()
            .try_for_each(|plugin| program(&self.options.plugin_dirs, &attachment.list, plugin).map(drop))?;
        self.attachments.write(&attachment)?;
        let holder = held.holder;
        lock(&self.held).insert(attachment.pod.clone(), held);
        let added = chain.run(self.options.patience, |chain| chain.add(&attachment, &PodNamespace::Of(holder)));
        let (result, addresses) = match added {
            Ok(added) => added,
            Err(failure) => return Err(self.give_up(&attachment.pod, failure)),
        };
        let name = attachment.list.name.clone();
        attachment.result = Some(result.in_version(attachment.list.version));
        self.attachments.write(&attachment)?;
        let node_interface = result.node_interface().unwrap_or_default().to_owned();
        Ok(PodNetwork {
            interface: attachment.interface,
            node_interface,
            addresses,
            ranges: Vec::new(),
            hardware_address: None,
            cni: Some(name),
        })
    }

    /// Where no plugin ran there is nothing to take away; what the record says could not be done either.
    fn give_up(&self, pod: &PodId, failure: AddFailure) -> CniError {
        if failure.nothing_ran {
            lock(&self.held).remove(pod);
            if let Err(error) = self.attachments.remove(pod) {
                tracing::warn!(%pod, %error, "the record of a pod that no plugin connected is left");
            }
        }
        failure.error
    }

    fn disconnect(&self, pod: &PodId) -> Result<(), CniError> {
        match self.attachments.read(pod) {
            Ok(Some(attachment)) => self.delete(&attachment)?,
            Ok(None) => return Ok(()),
            Err(CniError::Record(error)) if error.is_damaged() => return self.disconnect_by_guess(pod, &error),
            Err(error) => return Err(error),
        }
        lock(&self.held).remove(pod);
        self.attachments.remove(pod)
    }

    fn delete(&self, attachment: &Attachment) -> Result<(), CniError> {
        let held = lock(&self.held).get(&attachment.pod).cloned();
        let held = held.as_deref().map(|held| &held.namespace);
        let instead = stand_in_for(attachment, held);
        let namespace = instead.as_ref().or(held).map_or(PodNamespace::Gone, PodNamespace::Held);
        self.chain()?.run(self.options.patience, |chain| chain.delete(attachment, &namespace))
    }

    /// What made the pod's network is not known any more. The plugins that are configured now know it by the pod's id,
    /// most likely; what they do not free now they are asked to at the next start. The pod's end does not depend on it.
    fn disconnect_by_guess(&self, pod: &PodId, damage: &RecordError) -> Result<(), CniError> {
        let guess = list::find(&self.options.config_dir)
            .map(|list| list.map(|list| Attachment::new(pod.clone(), POD_INTERFACE, list, Arguments::unknown(pod))));
        if let Err(error) = guess.and_then(|guess| guess.map_or(Ok(()), |guess| self.delete(&guess))) {
            tracing::warn!(%pod, %error, "the network of a pod whose record is damaged may not be wholly taken down");
        }
        let place = self.attachments.set_aside(pod)?;
        lock(&self.held).remove(pod);
        tracing::error!(%pod, error = %damage, place = %place.display(), "what connected a pod is not known: its record is set aside");
        Ok(())
    }

    fn check(&self, pod: &PodId) -> Result<(), CniError> {
        let held = lock(&self.held).get(pod).cloned();
        let (Some(attachment), Some(held)) = (self.attachments.read(pod)?, held) else { return Ok(()) };
        self.chain()?.run(self.options.patience, |chain| chain.check(&attachment, &PodNamespace::Of(held.holder)))
    }

    fn collect_garbage(&self, list: &NetworkList) -> Result<(), CniError> {
        let mut valid = Vec::new();
        for pod in self.attachments.pods() {
            match self.attachments.read(&pod) {
                Ok(attachment) => {
                    let of_network = attachment.filter(|attachment| attachment.list.name == list.name);
                    valid.extend(of_network.map(|attachment| (attachment.pod, attachment.interface)));
                }
                // Of this network or not: it keeps what it has.
                Err(CniError::Record(error)) if error.is_damaged() => valid.push((pod, POD_INTERFACE.to_owned())),
                Err(error) => return Err(error),
            }
        }
        self.chain()?.run(self.options.patience, |chain| chain.collect_garbage(list, &valid))
    }
}
