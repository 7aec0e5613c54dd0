//! Images that are here, in memory and as records, and the layers they and the snapshots use.
//!
//! An image is `images/ALGORITHM-HEX.config` (the config's bytes as they came) and `images/ALGORITHM-HEX.json` (its
//! names); the second is written last and removed first, so an image is there whole or not at all. Where compressed
//! blobs are kept, `images/ALGORITHM-HEX.manifest` is beside them (`original`). Lists and look-ups are answered from
//! memory; whatever changes records does so one at a time.
//!
//! For pull.rs: `Puller::new(&ImageOptions, Store) -> Puller` (Clone) and
//! `Puller::pull(&self, reference: &str, Option<Credentials>, Option<ProgressSink>) -> Result<Arc<Image>, ImageError>`
//! are what `Images::pull` calls.

mod files;
pub mod original;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::config;
use super::digest::{Algorithm, Digest};
use super::hasher::digest_of;
use super::layers::{BLOCK_BYTES, LayerStore, Temporary, file_name, io_error, make_directory, reach};
use super::lookup;
use super::pins::Pins;
use super::{Image, ImageError, ImageErrorKind};
use crate::store;
use crate::sys::crash::Point;
use files::{is_newer, read_config, remove_leftover, write_bytes, written_at};
use original::{Came, Original};

/// Layout of an image's record.
const VERSION: u32 = 1;
/// Names of one image, of each kind; older digests go first.
const NAMES_LIMIT: usize = 1000;
/// Its config and its record, of a block each.
const FILES_OF_IMAGE: u64 = 2;

/// Names under which an image is committed, in their full form (`docker.io/library/busybox:1.36`).
#[derive(Debug, Clone, Default)]
pub struct ImageNames {
    /// `registry/repository:tag`; another image that had one of them loses it.
    pub repo_tags: Vec<String>,
    /// `registry/repository@sha256:...`.
    pub repo_digests: Vec<String>,
}

/// `images/ALGORITHM-HEX.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ImageRecord {
    version: u32,
    id: Digest,
    /// Of the manifest the image last came with.
    manifest: Option<Digest>,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    pinned: bool,
}

/// What is in memory of an image.
#[derive(Debug, Clone)]
struct Held {
    image: Arc<Image>,
    manifest: Option<Digest>,
    /// That manifest, where it was kept.
    original: Option<Arc<Original>>,
    layers: Vec<Digest>,
    /// By its record, whatever its names are.
    pinned: bool,
}

/// What is in memory.
#[derive(Debug, Default)]
struct Index {
    images: BTreeMap<Digest, Held>,
    /// Layers of each snapshot.
    snapshots: HashMap<String, Vec<Digest>>,
}

#[derive(Debug)]
struct Shared {
    images: PathBuf,
    layers: LayerStore,
    pins: Pins,
    /// There are images of a later release, whose layers are not known.
    keep_layers: bool,
    index: RwLock<Index>,
    /// Held by whoever changes records of images, or collects layers.
    writing: Mutex<()>,
}

/// Images and layers that are here. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What a removal of several images took away.
#[derive(Debug, Default)]
pub struct Pruned {
    /// The images.
    pub images: Vec<Arc<Image>>,
    /// Bytes of layers that nothing needs any more.
    pub bytes: u64,
    /// Files that go when this is dropped.
    pub gone: Vec<Temporary>,
}

impl Store {
    /// Reads the records below `root`. What cannot be read is said and left out. Blocking.
    pub fn open(root: &Path, in_user_namespace: bool) -> Result<Self, ImageError> {
        Self::open_with(root, in_user_namespace, Pins::default(), false)
    }

    /// As [`Self::open`], where images with certain names are pinned, and compressed blobs may be kept.
    pub fn open_with(root: &Path, in_user_namespace: bool, pins: Pins, keeps_blobs: bool) -> Result<Self, ImageError> {
        let images = root.join("images");
        make_directory(&images)?;
        let layers = LayerStore::open(root.join("layers"), in_user_namespace, keeps_blobs)?;
        let (mut found, mut keep_layers) = (Vec::new(), false);
        for entry in std::fs::read_dir(&images).map_err(io_error("read", &images))? {
            let path = entry.map_err(io_error("read", &images))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                remove_leftover(&path)?;
                continue;
            }
            match read_image(&path, &layers, &pins) {
                Ok((id, held)) => found.push((written_at(&path), id, held)),
                Err(e) if is_newer(&path) => {
                    tracing::warn!("image {} is not used, and no layer is removed: {e}", path.display());
                    keep_layers = true;
                }
                Err(e) => tracing::warn!("image {} is not used, pull it again: {e}", path.display()),
            }
        }
        let index = Index { images: with_names_once(found), snapshots: HashMap::new() };
        let shared = Shared { images, layers, pins, keep_layers, index: RwLock::new(index), writing: Mutex::new(()) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The layers.
    pub fn layers(&self) -> &LayerStore {
        &self.shared.layers
    }

    /// Validates the config, checks that every layer of its `rootfs.diff_ids` is here, and writes the image's record,
    /// durably. The id is the hash of `config_bytes`. Names are added to those the image has. Once begun it is done,
    /// also when the future is dropped.
    pub async fn commit_image(
        &self,
        config_bytes: Vec<u8>,
        manifest: Option<Came>,
        names: ImageNames,
    ) -> Result<Arc<Image>, ImageError> {
        let store = self.clone();
        blocking(move || store.commit_blocking(&config_bytes, manifest, names)).await
    }

    /// As [`Self::commit_image`]. Blocking.
    pub fn commit_blocking(
        &self,
        config_bytes: &[u8],
        manifest: Option<Came>,
        names: ImageNames,
    ) -> Result<Arc<Image>, ImageError> {
        let _writing = self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let id = digest_of(Algorithm::Sha256, config_bytes);
        let known = self.index().images.get(&id).cloned();
        let original = self.original_of(&id, manifest.as_ref(), known.as_ref());
        let mut record = ImageRecord {
            version: VERSION,
            id: id.clone(),
            manifest: manifest
                .as_ref()
                .map(|came| came.digest.clone())
                .or(known.as_ref().and_then(|held| held.manifest.clone())),
            repo_tags: known.as_ref().map(|held| held.image.repo_tags.clone()).unwrap_or_default(),
            repo_digests: known.as_ref().map(|held| held.image.repo_digests.clone()).unwrap_or_default(),
            pinned: known.is_some_and(|held| held.pinned),
        };
        add_names(&mut record.repo_tags, &names.repo_tags);
        add_names(&mut record.repo_digests, &names.repo_digests);
        let held = hold(config_bytes, &record, original, &self.shared.layers, &self.shared.pins)?;
        write_bytes(&self.config_path(&id), config_bytes)?;
        self.write_original(&id, held.original.as_deref(), manifest.as_ref())?;
        reach(Point::ImageConfig)?;
        if let Err(error) = store::write(&self.record_path(&id), &record) {
            if !self.index().images.contains_key(&id) {
                // Without a record beside it the config means nothing; the next open removes it too.
                let _ = store::remove(&self.config_path(&id)).and(store::remove(&self.manifest_path(&id)));
            }
            return Err(error.into());
        }
        let image = held.image.clone();
        self.index_mut().images.insert(id.clone(), held);
        reach(Point::ImageRecorded)?;
        // A tag names one image: the one that came last.
        self.take_tags(&id, &names.repo_tags)?;
        Ok(image)
    }

    fn take_tags(&self, new: &Digest, tags: &[String]) -> Result<(), ImageError> {
        let losers: Vec<(Digest, Held)> = self
            .index()
            .images
            .iter()
            .filter(|(id, held)| *id != new && held.image.repo_tags.iter().any(|tag| tags.contains(tag)))
            .map(|(id, held)| (id.clone(), held.clone()))
            .collect();
        for (id, mut held) in losers {
            let mut image = Image::clone(&held.image);
            image.repo_tags.retain(|tag| !tags.contains(tag));
            image.pinned = held.pinned || self.shared.pins.cover(&image.repo_tags);
            let record = ImageRecord {
                version: VERSION,
                id: id.clone(),
                manifest: held.manifest.clone(),
                repo_tags: image.repo_tags.clone(),
                repo_digests: image.repo_digests.clone(),
                pinned: held.pinned,
            };
            held.image = Arc::new(image);
            self.index_mut().images.insert(id.clone(), held);
            store::write(&self.record_path(&id), &record)?;
        }
        Ok(())
    }

    /// Bytes and inodes of layers and images together, as counted when they came.
    pub fn total(&self) -> (u64, u64) {
        let (bytes, inodes) = self.shared.layers.total();
        let index = self.index();
        let own = FILES_OF_IMAGE * index.images.len() as u64;
        let (manifest_bytes, manifests) =
            original::extent(index.images.values().filter_map(|held| held.original.as_ref()));
        (bytes + own * BLOCK_BYTES + manifest_bytes, inodes + own + manifests)
    }

    /// Every image.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.index().images.values().map(|held| held.image.clone()).collect()
    }

    /// By tag, digest, id, or a prefix of the id that is no other's.
    pub fn find(&self, name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        let index = self.index();
        lookup::find(index.images.values().map(|held| &held.image), name)
    }

    /// Removes the image with all its names, then every layer that nothing needs. False: there was none. Blocking;
    /// layers are out of the store when it returns, and what is returned removes their files when it is dropped.
    pub fn remove(&self, name: &str) -> Result<(bool, Vec<Temporary>), ImageError> {
        let writing = self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(image) = self.find(name)? else {
            drop(writing);
            // A removal that was cut short may have left its layers.
            return Ok((false, self.collect()));
        };
        if image.pinned {
            let message = format!("{name} is pinned by the configuration: take it out of images.pinned first");
            return Err(ImageError::new(ImageErrorKind::Busy, message));
        }
        self.forget(&image)?;
        drop(writing);
        let gone = self.collect();
        reach(Point::ImageCollected)?;
        Ok((true, gone))
    }

    /// With `writing` held.
    fn forget(&self, image: &Image) -> Result<(), ImageError> {
        let id: Digest = image.id.parse().map_err(|e| ImageError::new(ImageErrorKind::Internal, format!("{e}")))?;
        store::remove(&self.record_path(&id))?;
        reach(Point::ImageForgotten)?;
        store::remove(&self.config_path(&id))?;
        store::remove(&self.manifest_path(&id))?;
        super::layers::sync_directory(&self.shared.images)?;
        // Last, so that after an error the same removal finds it and goes on.
        self.index_mut().images.remove(&id);
        Ok(())
    }

    /// Removes every image that no snapshot stands on and that is not pinned; unless `all`, only those without a name.
    /// Blocking.
    pub fn prune(&self, all: bool) -> Result<Pruned, ImageError> {
        let writing = self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pruned = Pruned::default();
        for image in self.list() {
            if image.pinned || !(all || image.repo_tags.is_empty()) || self.is_used(&image) {
                continue;
            }
            self.forget(&image)?;
            pruned.images.push(image);
        }
        drop(writing);
        let before = self.shared.layers.total().0;
        pruned.gone = self.collect();
        pruned.bytes = before.saturating_sub(self.shared.layers.total().0);
        Ok(pruned)
    }

    /// Whether a snapshot stands on the layers of the image.
    fn is_used(&self, image: &Image) -> bool {
        let index = self.index();
        let Some(held) = index.images.values().find(|held| held.image.id == image.id) else { return false };
        index.snapshots.values().any(|layers| *layers == held.layers)
    }

    /// Takes a layer that is found damaged for missing. False: snapshots stand on it, and it stays as it is.
    pub fn condemn(&self, diff_id: &Digest) -> Result<bool, ImageError> {
        // Held until the layer is marked: a snapshot that is made now finds it in use, or missing.
        let index = self.index_mut();
        if index.snapshots.values().any(|layers| layers.contains(diff_id)) {
            return Ok(false);
        }
        self.shared.layers.mark_damaged(diff_id).map(|()| true)
    }

    /// The config of an image that is here, as it came. Blocking.
    pub fn config_bytes(&self, image: &Image) -> Result<Vec<u8>, ImageError> {
        let id: Digest = image.id.parse().map_err(|e| ImageError::new(ImageErrorKind::Internal, format!("{e}")))?;
        read_config(&self.config_path(&id), &id)
    }

    /// Takes the layers away that no image, snapshot or hold needs; their files go when what is returned is dropped.
    pub fn collect(&self) -> Vec<Temporary> {
        self.collect_where(|_| true)
    }

    /// As [`Self::collect`], only of `candidates`: layers of a broken-off pull stay, to be used by the next.
    pub fn collect_among(&self, candidates: &[Digest]) -> Vec<Temporary> {
        self.collect_where(|diff_id| candidates.contains(diff_id))
    }

    fn collect_where(&self, may_go: impl Fn(&Digest) -> bool) -> Vec<Temporary> {
        if self.shared.keep_layers {
            return Vec::new();
        }
        let _writing = self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Held until the layers are out: a snapshot that is made now finds its layers in use, or gone.
        let index = self.index_mut();
        let of_images = index.images.values().flat_map(|held| &held.layers);
        let of_snapshots = index.snapshots.values().flatten();
        let used: HashSet<Digest> = of_images.chain(of_snapshots).cloned().collect();
        let mut gone = self.shared.layers.collect(|diff_id| may_go(diff_id) && !used.contains(diff_id));
        let originals: HashSet<&Digest> = index.images.values().flat_map(Held::blobs).collect();
        gone.extend(self.shared.layers.collect_blobs(|diff_id, blob| !may_go(diff_id) || originals.contains(blob)));
        gone
    }

    /// From now on the snapshot `key` needs `layers`, all of which must be here.
    pub fn use_layers(&self, key: &str, layers: &[Digest]) -> Result<(), ImageError> {
        let mut index = self.index_mut();
        require(&self.shared.layers, layers)?;
        index.snapshots.insert(key.to_owned(), layers.to_vec());
        Ok(())
    }

    /// The snapshot `key` needs nothing any more. Returns its layers that belong to no image either.
    pub fn release_layers(&self, key: &str) -> Vec<Digest> {
        let mut index = self.index_mut();
        let mut layers = index.snapshots.remove(key).unwrap_or_default();
        layers.retain(|layer| !index.images.values().any(|held| held.layers.contains(layer)));
        layers
    }

    fn config_path(&self, id: &Digest) -> PathBuf {
        self.shared.images.join(format!("{}.config", file_name(id)))
    }

    fn manifest_path(&self, id: &Digest) -> PathBuf {
        self.config_path(id).with_extension(files::MANIFEST)
    }

    fn record_path(&self, id: &Digest) -> PathBuf {
        self.shared.images.join(format!("{}.json", file_name(id)))
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.shared.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.shared.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `rootfs.diff_ids` of a config, bounded: what a pull must unpack, lowest first.
pub fn diff_ids(config_bytes: &[u8]) -> Result<Vec<Digest>, ImageError> {
    config::diff_ids(config_bytes)
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let error = |e| ImageError::new(ImageErrorKind::Internal, format!("a task of the image service failed: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(error)?
}

fn read_image(path: &Path, layers: &LayerStore, pins: &Pins) -> Result<(Digest, Held), ImageError> {
    let record: ImageRecord = store::read_known(path, VERSION)?;
    let config = read_config(&path.with_extension("config"), &record.id)?;
    let original = original::read(&path.with_extension(files::MANIFEST), &record).map(Arc::new);
    let held = hold(&config, &record, original, layers, pins)?;
    Ok((record.id, held))
}

/// Between a commit and the records of those who lose a tag by it there may have been a crash: the last one has it.
fn with_names_once(mut found: Vec<(Option<SystemTime>, Digest, Held)>) -> BTreeMap<Digest, Held> {
    found.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
    let mut taken = HashSet::new();
    let mut images = BTreeMap::new();
    for (_, id, mut held) in found {
        if held.image.repo_tags.iter().any(|tag| taken.contains(tag)) {
            let mut image = Image::clone(&held.image);
            image.repo_tags.retain(|tag| !taken.contains(tag));
            held.image = Arc::new(image);
        }
        taken.extend(held.image.repo_tags.iter().cloned());
        images.insert(id, held);
    }
    images
}

fn hold(
    config_bytes: &[u8],
    record: &ImageRecord,
    original: Option<Arc<Original>>,
    layers: &LayerStore,
    pins: &Pins,
) -> Result<Held, ImageError> {
    let valid = config::validate(config_bytes)?;
    require(layers, &valid.diff_ids)?;
    let unique: HashSet<&Digest> = valid.diff_ids.iter().collect();
    let original = original.filter(|original| original.layers.len() == valid.diff_ids.len());
    let kept = original.as_ref().map_or(0, |original| original.kept_bytes(layers, &valid.diff_ids));
    let size: u64 = unique.into_iter().filter_map(|diff_id| layers.extent(diff_id)).map(|extent| extent.bytes).sum();
    let image = Image {
        id: record.id.to_string(),
        repo_tags: record.repo_tags.clone(),
        repo_digests: record.repo_digests.clone(),
        // A kubelet takes 0 for an error; the config takes a little room too.
        size_bytes: size + kept + config_bytes.len() as u64,
        pinned: record.pinned || pins.cover(&record.repo_tags),
        config: valid.config,
        layers: valid.diff_ids.iter().map(Digest::to_string).collect(),
    };
    let manifest = record.manifest.clone();
    Ok(Held { image: Arc::new(image), manifest, original, layers: valid.diff_ids, pinned: record.pinned })
}

fn require(layers: &LayerStore, diff_ids: &[Digest]) -> Result<(), ImageError> {
    match diff_ids.iter().find(|diff_id| !layers.contains(diff_id)) {
        Some(missing) => {
            Err(ImageError::new(ImageErrorKind::NotFound, format!("layer {missing} is not here; pull the image again")))
        }
        None => Ok(()),
    }
}

fn add_names(names: &mut Vec<String>, new: &[String]) {
    for name in new {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let surplus = names.len().saturating_sub(NAMES_LIMIT);
    names.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_earlier_releases_are_read() {
        for path in store::of_earlier_releases("image.json") {
            let record: ImageRecord = store::read_known(&path, VERSION).expect("read");
            assert_eq!(record.version, VERSION);
        }
    }
}
