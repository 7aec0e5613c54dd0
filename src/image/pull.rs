//! From a name to an image that is here: resolve, manifest, config, layers at the same time as each other, commit.
//!
//! ```text
//! name --HEAD--> digest known here? --------------------------------------> the image that is here
//!      --GET--> index? --> manifest --> config --> layers not here yet --> unpack --> commit
//! ```
//!
//! Every pull is authorised by the registry with its own credentials, whether the image is here or not. Two pulls of
//! one name with the same credentials are one: it goes on while anybody waits for it and stops when nobody does. What a
//! stopped pull leaves is finished layers, which the next one finds.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::digest::Digest;
use super::manifest::{Descriptor, ImageManifest, Manifest, ManifestError};
use super::platform::Platform;
use super::policy::{self, Policy};
use super::progress::Progress;
use super::reference::Reference;
use super::registry::error::RegistryError;
use super::registry::node::NodeNetwork;
use super::registry::patience::Patience;
use super::registry::session::{Document, Session};
use super::registry::transfer;
use super::store::original::Came;
use super::store::{ImageNames, Store, diff_ids};
use super::{Credentials, Image, ImageError, ImageErrorKind, ImageOptions, ProgressSink};

/// Layers of one pull that are fetched at a time.
const LAYERS_AT_A_TIME: usize = 4;
/// Layers of all pulls that are fetched at a time.
const LAYERS_AT_A_TIME_IN_ALL: usize = 12;
/// Pulls that run at a time.
const PULLS_MAX: usize = 500;
/// Indexes within indexes.
const INDEX_DEPTH_MAX: usize = 4;

/// Pulls images. Cheap to clone.
#[derive(Clone)]
pub struct Puller {
    state: Arc<State>,
}

struct State {
    registry_config_path: PathBuf,
    policy: Policy,
    store: Store,
    platform: Platform,
    patience: Patience,
    node: Option<Arc<NodeNetwork>>,
    layers: Semaphore,
    running: Mutex<HashMap<Key, Running, RandomState>>,
    counts: Counts,
}

impl State {
    async fn session(&self, reference: Reference, credentials: Option<Credentials>) -> Result<Session, RegistryError> {
        let (directory, patience) = (self.registry_config_path.clone(), self.patience.clone());
        Session::open_in(directory, reference, credentials, patience, self.node.clone()).await
    }
}

/// Since the daemon's start.
#[derive(Debug, Default)]
struct Counts {
    succeeded: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
}

/// A name and a hash of the credentials.
type Key = (String, [u8; 32]);
type Outcome = Result<Arc<Image>, Arc<ImageError>>;

struct Running {
    work: WeakShared<BoxFuture<'static, Outcome>>,
    progress: Arc<Progress>,
}

/// How many pulls have ended, and the bytes of the layers that they fetched, compressed; since the daemon's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PullCounts {
    /// The image is here.
    pub succeeded: u64,
    /// It is not.
    pub failed: u64,
    /// Of layers.
    pub bytes: u64,
}

impl fmt::Debug for Puller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Puller").field("registry_config_path", &self.state.registry_config_path).finish_non_exhaustive()
    }
}

impl Puller {
    /// Pulls into `store`.
    pub fn new(options: &ImageOptions, store: Store) -> Self {
        Self::with_patience(options, store, Patience::default())
    }

    /// With other limits on waiting.
    pub fn with_patience(options: &ImageOptions, store: Store, patience: Patience) -> Self {
        let state = State {
            registry_config_path: options.registry_config_path.clone(),
            policy: Policy::new(options.policy.clone()),
            store,
            platform: Platform::host(),
            patience,
            node: options.node_network.clone().map(|namespace| Arc::new(NodeNetwork::new(namespace))),
            layers: Semaphore::new(LAYERS_AT_A_TIME_IN_ALL),
            running: Mutex::default(),
            counts: Counts::default(),
        };
        Self { state: Arc::new(state) }
    }

    /// See [`super::Images::pull_counts`].
    pub fn counts(&self) -> PullCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { succeeded, failed, bytes } = &self.state.counts;
        PullCounts { succeeded: read(succeeded), failed: read(failed), bytes: read(bytes) }
    }

    /// See [`super::Images::pull`].
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        progress: Option<ProgressSink>,
    ) -> Result<Arc<Image>, ImageError> {
        let reference: Reference = reference.parse()?;
        let (work, board) = self.join(reference, credentials)?;
        let _watching = progress.map(|sink| board.watch(sink));
        work.await.map_err(|error| ImageError::new(error.kind, error.message.clone()))
    }

    /// The pull of this name with these credentials that is running, or a new one.
    fn join(
        &self,
        reference: Reference,
        credentials: Option<Credentials>,
    ) -> Result<(Shared<BoxFuture<'static, Outcome>>, Arc<Progress>), ImageError> {
        let key = (reference.to_string(), fingerprint(credentials.as_ref()));
        let mut running = self.state.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, pull| pull.work.upgrade().is_some_and(|work| work.peek().is_none()));
        if let Some((work, pull)) = running.get(&key).and_then(|pull| Some((pull.work.upgrade()?, pull))) {
            return Ok((work, Arc::clone(&pull.progress)));
        }
        if running.len() >= PULLS_MAX {
            let message = format!("{PULLS_MAX} pulls are running already; try again when some have ended");
            return Err(ImageError::new(ImageErrorKind::Exhausted, message));
        }
        let progress = Arc::new(Progress::default());
        let pull = Pull { state: Arc::clone(&self.state), reference, progress: Arc::clone(&progress) };
        let state = Arc::clone(&self.state);
        let work = async move {
            let outcome = pull.run(credentials).await.map_err(Arc::new);
            let count = if outcome.is_ok() { &state.counts.succeeded } else { &state.counts.failed };
            count.fetch_add(1, Ordering::Relaxed);
            outcome
        };
        let work = work.boxed().shared();
        if let Some(weak) = work.downgrade() {
            running.insert(key, Running { work: weak, progress: Arc::clone(&progress) });
        }
        Ok((work, progress))
    }
}

/// Tells credentials apart without keeping them.
fn fingerprint(credentials: Option<&Credentials>) -> [u8; 32] {
    let parts: [&str; 3] = match credentials {
        None => ["none", "", ""],
        Some(Credentials::Basic { username, password }) => ["basic", username, password],
        Some(Credentials::IdentityToken(token)) => ["identity", token, ""],
        Some(Credentials::RegistryToken(token)) => ["registry", token, ""],
    };
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

struct Pull {
    state: Arc<State>,
    reference: Reference,
    progress: Arc<Progress>,
}

impl Pull {
    async fn run(self, credentials: Option<Credentials>) -> Result<Arc<Image>, ImageError> {
        let state = &self.state;
        let session = Arc::new(state.session(self.reference.clone(), credentials.clone()).await?);
        if let Some((image, digest)) = self.unchanged(&session).await? {
            self.check_signature(&digest, credentials).await?;
            return Ok(image);
        }
        let top = session.resolve().await?;
        self.check_signature(&top.digest, credentials).await?;
        let (manifest, came) = self.choose(&session, &top).await?;
        let config = session.config(&manifest.config).await?.bytes;
        let diff_ids = diff_ids(&config)?;
        if diff_ids.len() != manifest.layers.len() {
            let (of_config, of_manifest) = (diff_ids.len(), manifest.layers.len());
            let message =
                format!("{}: the config names {of_config} layers and the manifest {of_manifest}", self.reference);
            return Err(ImageError::new(ImageErrorKind::BadImage, message));
        }
        // Taken before the first look: what is here now is here at the commit.
        let _hold = state.store.layers().hold();
        self.fetch_layers(&session, manifest.layers, diff_ids).await?;
        let names = ImageNames {
            repo_tags: self.reference.repo_tag().into_iter().collect(),
            repo_digests: vec![self.reference.repo_digest(&top.digest)],
        };
        state.store.commit_image(config, Some(came), names).await
    }

    /// The image that is here under this name, if the registry says that it still is the one.
    async fn unchanged(&self, session: &Session) -> Result<Option<(Arc<Image>, Digest)>, ImageError> {
        let Some(image) = self.state.store.find(&self.reference.to_string())? else { return Ok(None) };
        match session.current_digest().await {
            Ok(Some(digest)) => {
                let name = self.reference.repo_digest(&digest);
                let store = &self.state.store;
                let kept = || !store.layers().keeps_blobs() || store.original(&image).is_some();
                let whole = || image.layers.iter().all(|layer| self.is_here(layer)) && kept();
                Ok((image.repo_digests.contains(&name) && whole()).then_some((image, digest)))
            }
            // Some registries know no HEAD, and some mirrors fail: GET decides.
            Ok(None) | Err(_) => Ok(None),
        }
    }

    /// What the policy wants of the image, if anything, before any of it is taken.
    async fn check_signature(&self, digest: &Digest, credentials: Option<Credentials>) -> Result<(), ImageError> {
        let state = &self.state;
        let Some(keys) = state.policy.keys(&self.reference) else { return Ok(()) };
        let reference = policy::signatures_of(&self.reference, digest)?;
        let session = state.session(reference, credentials).await?;
        Policy::check(keys, &self.reference, digest, &session).await
    }

    /// Not so where the layer was found damaged.
    fn is_here(&self, layer: &str) -> bool {
        layer.parse().is_ok_and(|diff_id| self.state.store.layers().contains(&diff_id))
    }

    /// The manifest for this machine, and as it came.
    async fn choose(&self, session: &Session, top: &Document) -> Result<(ImageManifest, Came), ImageError> {
        let mut document = top.clone();
        for _ in 0..=INDEX_DEPTH_MAX {
            match Manifest::parse(&document.bytes, document.content_type.as_deref()).map_err(|e| self.named(e))? {
                Manifest::Image(manifest) => {
                    return Ok((manifest, Came { digest: document.digest, bytes: document.bytes }));
                }
                Manifest::Index(index) => {
                    let descriptor = index.choose(&self.state.platform).map_err(|e| self.named(e))?;
                    document = session.manifest(descriptor).await?;
                    // The index is trusted by its digest, so what it says decides how the manifest is read.
                    document.content_type = Some(descriptor.media_type.as_str().to_owned());
                }
            }
        }
        let message = format!("{}: indexes within indexes, more than {INDEX_DEPTH_MAX} deep", self.reference);
        Err(ImageError::new(ImageErrorKind::BadImage, message))
    }

    /// Unpacks the layers that are not here, the largest first: the last to end decides when the pull does.
    async fn fetch_layers(
        &self,
        session: &Arc<Session>,
        layers: Vec<Descriptor>,
        diff_ids: Vec<Digest>,
    ) -> Result<(), ImageError> {
        let mut missing: Vec<(Descriptor, Digest)> = Vec::new();
        for (descriptor, diff_id) in layers.into_iter().zip(diff_ids) {
            self.progress.add(&descriptor);
            let layers = self.state.store.layers();
            let keeps = layers.keeps_blobs();
            let here =
                if keeps { layers.contains_blob(&diff_id, &descriptor.digest) } else { layers.contains(&diff_id) };
            let is_same =
                |known: &(Descriptor, Digest)| known.1 == diff_id && (!keeps || known.0.digest == descriptor.digest);
            if here {
                self.progress.reused(&descriptor);
            } else if !missing.iter().any(is_same) {
                missing.push((descriptor, diff_id));
            }
        }
        missing.sort_by_key(|(descriptor, _)| std::cmp::Reverse(descriptor.size));
        let mut waiting = missing.into_iter();
        // Dropped with the pull, and with it every transfer.
        let mut tasks = JoinSet::new();
        loop {
            while tasks.len() < LAYERS_AT_A_TIME
                && let Some((descriptor, diff_id)) = waiting.next()
            {
                let (state, session) = (Arc::clone(&self.state), Arc::clone(session));
                tasks.spawn(fetch_layer(state, session, descriptor, diff_id, Arc::clone(&self.progress)));
            }
            match tasks.join_next().await {
                None => return Ok(()),
                Some(Ok(done)) => done?,
                Some(Err(error)) => {
                    return Err(ImageError::new(ImageErrorKind::Internal, format!("a layer's task: {error}")));
                }
            }
        }
    }

    fn named(&self, error: ManifestError) -> ImageError {
        let error = ImageError::from(error);
        ImageError::new(error.kind, format!("{}: {}", self.reference, error.message))
    }
}

async fn fetch_layer(
    state: Arc<State>,
    session: Arc<Session>,
    descriptor: Descriptor,
    diff_id: Digest,
    progress: Arc<Progress>,
) -> Result<(), ImageError> {
    // Never closed, so this waits and does not fail.
    let _permit = state.layers.acquire().await;
    progress.begin(&descriptor);
    let (blob, failure) = transfer::blob(session, descriptor.clone());
    let on_bytes = |bytes| progress.advance(&descriptor, bytes);
    let unpacked = state.store.layers().unpack(blob, &descriptor, &diff_id, on_bytes).await;
    match (unpacked, failure.take()) {
        (Ok(()), _) => {
            progress.done(&descriptor);
            state.counts.bytes.fetch_add(descriptor.size, Ordering::Relaxed);
            Ok(())
        }
        // That the stream ended early is not the unpacker's failure.
        (Err(_), Some(error)) => Err(error.into()),
        (Err(error), None) => Err(error),
    }
}
