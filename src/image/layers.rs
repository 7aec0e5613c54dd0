//! Layers on disk, shared by diff id.
//!
//! A layer is `layers/ALGORITHM-HEX/` with `tree/` (what the tar held, whiteouts as overlayfs wants them) and
//! `layer.json`, and mostly `recipe`, from which its tar can be had again (`unpack::recipe`). It is unpacked in
//! `layers/.temporary-ID/`; then the file system is synced, the record is written, the directory is renamed to its name
//! and `layers/` is synced. So what has a layer's name is whole, also after a power cut; what has not is removed at the
//! next open. To be removed, a layer is first renamed away. A file `damaged` in it says that it was found to be other
//! than it was: it is taken for missing, and the next unpack replaces it. Where compressed blobs are kept they lie
//! beside the tree (`blobs`).

mod blobs;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{CWD, Mode, OFlags, openat, syncfs};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;

use super::digest::Digest;
use super::manifest::Descriptor;
use super::unpack::recipe::{self, AgainError};
use super::unpack::stream::{Claim, Source, Wire, channel, pump};
use super::unpack::{self, Extent, OpaqueMark};
use super::{ImageError, ImageErrorKind};
use crate::store::{self, ContainerId};
use crate::sys::crash::{self, Point};
use crate::sys::removal::remove_path;
use blobs::Blob;

/// Layout of `layer.json`.
const VERSION: u32 = 1;
const RECORD: &str = "layer.json";
const TREE: &str = "tree";
const RECIPE: &str = "recipe";
const DAMAGED: &str = "damaged";
/// What a file of ours takes on disk is counted in these.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// A layer's directory and its record.
const OWN_INODES: u64 = 2;
/// In front of a random name: being unpacked, or being removed.
const TEMPORARY_PREFIX: &str = ".temporary-";

/// `layer.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LayerRecord {
    version: u32,
    diff_id: Digest,
    bytes: u64,
    inodes: u64,
    /// Whether the layer has an entry for the root directory itself.
    has_root: bool,
    /// Whether it can only be copied, since its file system has no whiteouts that overlayfs knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hides_by_name: bool,
    /// Size of its tar, where it has a recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plain_bytes: Option<u64>,
}

#[derive(Debug)]
struct Layer {
    extent: Extent,
    plain_bytes: Option<u64>,
    blobs: Vec<Blob>,
    damaged: bool,
    /// When it was last seen or unpacked, on [`Table::clock`].
    touched: u64,
}

#[derive(Debug, Default)]
struct Table {
    layers: HashMap<Digest, Layer>,
    /// Counts holds and touches.
    clock: u64,
    /// Begin of each hold under way, and how many began then.
    holds: BTreeMap<u64, usize>,
}

impl Table {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    mark: OpaqueMark,
    keeps_blobs: bool,
    table: Mutex<Table>,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The unpacked layers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LayerStore {
    shared: Arc<Shared>,
}

/// While it lives, no layer that was seen ([`LayerStore::contains`]) or unpacked since it was taken is collected.
/// A pull or a load takes one before its first look and drops it after `Store::commit_image`.
#[derive(Debug)]
pub struct Hold {
    shared: Arc<Shared>,
    began: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        if let Some(count) = table.holds.get_mut(&self.began) {
            *count -= 1;
            if *count == 0 {
                table.holds.remove(&self.began);
            }
        }
    }
}

/// A directory that goes with its owner, unless it was renamed away before.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(e) = remove_path(&self.path) {
            tracing::warn!("cannot remove {}: {e}; the next start tries again", self.path.display());
        }
    }
}

impl LayerStore {
    /// Reads which layers are in `directory`, and removes what a crash left half made. Blocking.
    pub(super) fn open(directory: PathBuf, in_user_namespace: bool, keeps_blobs: bool) -> Result<Self, ImageError> {
        make_directory(&directory)?;
        let mut table = Table::default();
        for entry in std::fs::read_dir(&directory).map_err(io_error("read", &directory))? {
            let entry = entry.map_err(io_error("read", &directory))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(TEMPORARY_PREFIX) {
                remove_path(&entry.path()).map_err(|e| io_error("remove", &entry.path())(e.into()))?;
            } else if let Some((diff_id, layer)) = read_layer(&entry.path(), &name) {
                table.layers.insert(diff_id, layer);
            }
        }
        let mark = try_marks(&directory, in_user_namespace)?;
        Ok(Self { shared: Arc::new(Shared { directory, mark, keeps_blobs, table: Mutex::new(table) }) })
    }

    /// Whether the file system takes no whiteouts as overlayfs has them.
    pub fn hides_by_name(&self) -> bool {
        self.shared.mark == OpaqueMark::Names
    }

    /// Keeps what is seen or unpacked from now on.
    pub fn hold(&self) -> Hold {
        let mut table = self.shared.table();
        let began = table.tick();
        *table.holds.entry(began).or_default() += 1;
        Hold { shared: self.shared.clone(), began }
    }

    /// Whether the layer is here, whole.
    pub fn contains(&self, diff_id: &Digest) -> bool {
        let mut table = self.shared.table();
        let now = table.tick();
        table.layers.get_mut(diff_id).filter(|layer| !layer.damaged).map(|layer| layer.touched = now).is_some()
    }

    /// Size of the layer's tar, if it can be written again.
    pub fn plain_bytes(&self, diff_id: &Digest) -> Option<u64> {
        self.shared.table().layers.get(diff_id)?.plain_bytes
    }

    /// Writes the layer's tar. Whoever asks holds the layer, and hashes what comes. Blocking.
    pub(super) fn write_again(&self, diff_id: &Digest, out: &mut impl std::io::Write) -> Result<(), AgainError> {
        let open = |path: PathBuf| std::fs::File::open(&path).map_err(|e| AgainError::Damaged(e.to_string()));
        let (recipe, tree) = (open(self.path(diff_id).join(RECIPE))?, open(self.tree(diff_id))?);
        recipe::write_again(recipe, tree.into(), out)
    }

    /// From now on the layer is taken for missing, and the next unpack of it replaces it. Whoever asks has seen to it
    /// that no snapshot stands on it.
    pub(super) fn mark_damaged(&self, diff_id: &Digest) -> Result<(), ImageError> {
        let mark = self.path(diff_id).join(DAMAGED);
        std::fs::File::create(&mark).and_then(|file| file.sync_all()).map_err(io_error("mark", &mark))?;
        if let Some(layer) = self.shared.table().layers.get_mut(diff_id) {
            layer.damaged = true;
        }
        Ok(())
    }

    /// Bytes and inodes of a layer that is here.
    pub fn extent(&self, diff_id: &Digest) -> Option<Extent> {
        self.shared.table().layers.get(diff_id).map(|layer| layer.extent)
    }

    /// Bytes and inodes of all layers together, with their directories and records.
    pub fn total(&self) -> (u64, u64) {
        let table = self.shared.table();
        let sum = |(bytes, inodes), layer: &Layer| {
            let blobs: u64 = layer.blobs.iter().map(|blob| blob.bytes.next_multiple_of(BLOCK_BYTES)).sum();
            let own = OWN_INODES + layer.blobs.len() as u64;
            (bytes + layer.extent.bytes + blobs + OWN_INODES * BLOCK_BYTES, inodes + layer.extent.inodes + own)
        };
        table.layers.values().fold((0, 0), sum)
    }

    /// Where the layer's tree is.
    pub fn tree(&self, diff_id: &Digest) -> PathBuf {
        self.path(diff_id).join(TREE)
    }

    fn path(&self, diff_id: &Digest) -> PathBuf {
        self.shared.directory.join(file_name(diff_id))
    }

    /// Unpacks `blob` (bytes as from the wire; compression is recognised by its first bytes) in one pass and commits
    /// the layer. `BadImage` when size or hash are not the descriptor's, or the plain tar's hash is not `diff_id`. A
    /// second unpack of the same layer at the same time is harmless. Dropping the future stops it and leaves nothing.
    /// `on_bytes` gets the number of compressed bytes of each step.
    pub async fn unpack<R, F>(
        &self,
        blob: R,
        descriptor: &Descriptor,
        diff_id: &Digest,
        on_bytes: F,
    ) -> Result<(), ImageError>
    where
        R: AsyncRead + Send + Unpin,
        F: FnMut(u64) + Send,
    {
        let claim = Claim { digest: descriptor.digest.clone(), size: descriptor.size };
        let (pieces, source) = channel();
        let (store, diff_id) = (self.clone(), diff_id.clone());
        let job = tokio::task::spawn_blocking(move || {
            let what = format!("layer {}", claim.digest);
            store.unpack_blocking(Wire::new(Source::Channel(source), Some(claim)), &diff_id, &what)
        });
        pump(blob, pieces, on_bytes).await;
        job.await.map_err(|e| ImageError::new(ImageErrorKind::Internal, format!("unpacking failed: {e}")))?
    }

    /// As [`Self::unpack`], of any source; `what` is for messages. Where blobs are kept and the layer is here already,
    /// it is only the blob that comes. Blocking.
    pub(super) fn unpack_blocking(&self, mut wire: Wire, diff_id: &Digest, what: &str) -> Result<(), ImageError> {
        let kept = self.to_keep(&wire);
        if let Some(blob) = kept.clone().filter(|_| self.contains(diff_id)) {
            return self.keep_blob(wire, diff_id, blob, what);
        }
        let temporary = self.temporary();
        make_directory(&temporary.path)?;
        let root = make_tree(&temporary.path.join(TREE))?;
        let tree = root.try_clone().map_err(io_error("open", &temporary.path))?;
        let path = temporary.path.join(RECIPE);
        let recipe = std::fs::File::create(&path).map_err(io_error("create", &path))?;
        if let Some(blob) = &kept {
            wire = wire.keeping(blob.create(&temporary.path)?);
        }
        let unpacked = unpack::unpack(wire, diff_id, tree, self.shared.mark, recipe).map_err(|e| e.of(what))?;
        let mut extent = unpacked.extent;
        match unpacked.recipe_bytes {
            Some(bytes) => {
                extent.bytes += bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
                extent.inodes += 1;
            }
            None => std::fs::remove_file(&path).map_err(io_error("remove", &path))?,
        }
        let plain_bytes = unpacked.recipe_bytes.map(|_| unpacked.plain_bytes);
        let blobs = blobs::needed(kept, diff_id, plain_bytes, &temporary.path)?;
        syncfs(&root).map_err(|e| io_error("sync", &temporary.path)(e.into()))?;
        let record = LayerRecord {
            version: VERSION,
            diff_id: diff_id.clone(),
            bytes: extent.bytes,
            inodes: extent.inodes,
            has_root: extent.has_root,
            hides_by_name: extent.hides_by_name,
            plain_bytes,
        };
        store::write(&temporary.path.join(RECORD), &record)?;
        reach(Point::LayerUnpacked)?;
        self.commit(temporary, diff_id, Layer { extent, plain_bytes, blobs, damaged: false, touched: 0 })
    }

    fn commit(&self, temporary: Temporary, diff_id: &Digest, mut layer: Layer) -> Result<(), ImageError> {
        let path = self.path(diff_id);
        let mut table = self.shared.table();
        let touched = table.tick();
        if let Some(known) = table.layers.get_mut(diff_id).filter(|known| !known.damaged) {
            // Another unpack of the same layer was faster; ours goes, but for a blob that the other one had not.
            known.touched = touched;
            let adopt = |blob: Blob| blobs::adopt(known, blob.path_in(&temporary.path), &path, blob, touched);
            return layer.blobs.into_iter().try_for_each(adopt);
        }
        // What has the name and is not taken for a layer is damaged, or could not be read when the store was opened.
        let replaced = self.temporary();
        if std::fs::rename(&path, &replaced.path).is_ok() {
            tracing::warn!("layer {diff_id} was damaged, and is replaced");
        }
        std::fs::rename(&temporary.path, &path).map_err(io_error("rename", &path))?;
        layer.touched = touched;
        layer.blobs.iter_mut().for_each(|blob| blob.touched = touched);
        table.layers.insert(diff_id.clone(), layer);
        drop(table);
        reach(Point::LayerInPlace)?;
        sync_directory(&self.shared.directory)
    }

    /// Takes every layer away that `may_go` and was not seen since the oldest hold began. What is returned is already
    /// out of the store and goes from the disk when it is dropped. Blocking.
    pub(super) fn collect(&self, may_go: impl Fn(&Digest) -> bool) -> Vec<Temporary> {
        let mut table = self.shared.table();
        let oldest_hold = table.holds.keys().next().copied().unwrap_or(u64::MAX);
        let victims: Vec<Digest> = table
            .layers
            .iter()
            .filter(|(diff_id, layer)| may_go(diff_id) && layer.touched < oldest_hold)
            .map(|(diff_id, _)| diff_id.clone())
            .collect();
        let mut gone = Vec::new();
        for diff_id in victims {
            let temporary = self.temporary();
            if let Err(e) = std::fs::rename(self.path(&diff_id), &temporary.path) {
                tracing::warn!("cannot remove layer {diff_id}: {e}");
                continue;
            }
            table.layers.remove(&diff_id);
            gone.push(temporary);
        }
        gone
    }

    fn temporary(&self) -> Temporary {
        let name = format!("{TEMPORARY_PREFIX}{}", ContainerId::random().short());
        Temporary { path: self.shared.directory.join(name) }
    }
}

/// `sha256-HEX`.
pub(super) fn file_name(digest: &Digest) -> String {
    digest.to_string().replace(':', "-")
}

fn read_layer(path: &Path, name: &str) -> Option<(Digest, Layer)> {
    let diff_id: Digest = name.replacen('-', ":", 1).parse().ok()?;
    match store::read::<LayerRecord>(&path.join(RECORD)) {
        Ok(record) if record.version == VERSION && record.diff_id == diff_id => {
            let LayerRecord { bytes, inodes, has_root, hides_by_name, .. } = record;
            let extent = Extent { bytes, inodes, has_root, hides_by_name };
            let (blobs, damaged) = (blobs::read(path), path.join(DAMAGED).exists());
            Some((diff_id, Layer { extent, plain_bytes: record.plain_bytes, blobs, damaged, touched: 0 }))
        }
        Ok(record) => {
            tracing::warn!("layer {name} has a record of version {} for {}: not used", record.version, record.diff_id);
            None
        }
        Err(e) => {
            tracing::warn!("layer {name} is not used: {e}");
            None
        }
    }
}

/// How layers in `directory` are to say what they hide.
fn try_marks(directory: &Path, in_user_namespace: bool) -> Result<OpaqueMark, ImageError> {
    let probe = Temporary { path: directory.join(format!("{TEMPORARY_PREFIX}probe")) };
    let mark = OpaqueMark::of(make_tree(&probe.path)?.as_fd(), in_user_namespace);
    if mark == OpaqueMark::Names {
        let shown = directory.display();
        tracing::warn!("{shown} takes no whiteouts: images that delete files are copied for each container");
    }
    Ok(mark)
}

fn make_tree(path: &Path) -> Result<OwnedFd, ImageError> {
    make_directory(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, path, flags, Mode::empty()).map_err(|e| io_error("open", path)(e.into()))?;
    // What a root directory without an entry of its own looks like; independent of our umask.
    rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(|e| io_error("change mode of", path)(e.into()))?;
    Ok(root)
}

/// Between two steps: nothing, but where a test wishes otherwise.
pub(super) fn reach(point: Point) -> Result<(), ImageError> {
    crash::reach(point).map_err(io_error("go on from", Path::new(point.name())))
}

/// A directory that only we can enter; that it is there is fine.
pub(super) fn make_directory(path: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("make directory", path))
}

/// Makes names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), ImageError> {
    std::fs::File::open(path).and_then(|directory| directory.sync_all()).map_err(io_error("sync", path))
}

/// For `map_err` on what we do with files of ours.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| {
        let full = matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        let message = format!("cannot {action} {}: {source}", path.display());
        if full { ImageError::disk_full(&message) } else { ImageError::new(ImageErrorKind::Internal, message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_earlier_releases_are_read() {
        for path in store::of_earlier_releases("layer.json") {
            let record: LayerRecord = store::read(&path).expect("read");
            assert_eq!(record.version, VERSION);
        }
    }
}
