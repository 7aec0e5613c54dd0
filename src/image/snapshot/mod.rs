//! Snapshots: the writable part of each container over its image's layers.
//!
//! A snapshot is `snapshots/KEY/` with `upper/` and `work/` of an overlay mount, and `snapshot.json`, written last. It is
//! not synced: what a container wrote ends with the machine, as the container does. Where the file system refuses overlays, fuse-overlayfs stacks the same
//! directories (`sys::fuse`); where that is not there either, `rootfs/` is a plain copy of the layers; so it is where a
//! container has a user namespace of its own and layers cannot be shown as that namespace's. The mount itself is a
//! descriptor and is made anew each time a snapshot is asked for; nothing is attached.

pub mod copy;
mod points;

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, chmodat, chownat, statat, unlinkat};
use serde::{Deserialize, Serialize};

pub use points::MountPoint;

use super::digest::Digest;
use super::layers::{io_error, make_directory, reach};
use super::store::Store;
use super::{Image, ImageError, ImageErrorKind, Snapshot};
use crate::store::{self, ContainerId};
use crate::sys::crash::Point;
use crate::sys::fuse;
use crate::sys::overlay::{Overlay, clone_tree};
use crate::sys::owners::{IdRange, show_as};
use crate::sys::removal::remove_path;
use crate::sys::usage::{Usage, of_tree};

/// Layout of `snapshot.json`.
const VERSION: u32 = 1;
const RECORD: &str = "snapshot.json";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// The plain copy, where there are no overlays.
const ROOTFS: &str = "rootfs";
/// In front of a random name: being removed.
const TEMPORARY_PREFIX: &str = ".temporary-";
/// Longest key; a container's id has 64 characters.
const KEY_LIMIT_CHARS: usize = 128;
/// How long a measured usage is repeated.
const USAGE_LIFETIME: Duration = Duration::from_secs(15);
/// A measurement in the background that took longer than this is followed by a rest of so many times as long: large
/// trees cost a tenth of a processor at most.
const MEASURE_NOTICEABLE: Duration = Duration::from_millis(2);
const MEASURE_REST: u32 = 9;
const MEASURE_REST_LONGEST: Duration = Duration::from_secs(60);

/// `snapshot.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SnapshotRecord {
    version: u32,
    image: String,
    /// Diff ids, lowest first.
    layers: Vec<Digest>,
    read_only: bool,
    /// Whether the mount itself is read-only, not only what the container makes of it.
    sealed: bool,
    /// Whether it is a plain copy.
    copied: bool,
    /// Whether it is stacked by fuse-overlayfs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    fused: bool,
    /// As whose ids its files are shown, or were copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ids: Option<IdRange>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    /// Below images with fewer layers than overlayfs wants.
    empty: [PathBuf; 2],
    /// Below every image: where something is mounted in each container, for images that lack the place. Making it in
    /// each upper directory would cost more than the rest of a snapshot.
    below: PathBuf,
    store: Store,
    user_attributes: bool,
    overlay: bool,
    /// The program, where it works and somebody needs it.
    fuse: Option<PathBuf>,
    usages: Mutex<HashMap<String, (Instant, Usage)>>,
    measuring: AtomicBool,
}

/// The snapshots. Cheap to clone; everything here blocks unless it says otherwise.
#[derive(Debug, Clone)]
pub struct Snapshots {
    shared: Arc<Shared>,
}

impl Snapshots {
    /// Reads the records below `root`, removes what a crash left half made, and tries an overlay mount there; where
    /// layers cannot be stacked so, the program `fuse` is tried too, if one is named.
    pub fn open(root: &Path, store: Store, in_user_namespace: bool, fuse: Option<&Path>) -> Result<Self, ImageError> {
        let directory = root.join("snapshots");
        let empty = [root.join("empty/0"), root.join("empty/1")];
        for path in [&directory, &empty[0], &empty[1]] {
            make_directory(path)?;
        }
        let below = root.join("below");
        points::make_everywhere(&below)?;
        let probe = |mount: &dyn Fn(&Overlay<'_>) -> std::io::Result<OwnedFd>| {
            probe_stack(&directory, &empty, in_user_namespace, mount)
        };
        let refused = probe(&|stack| stack.mount())?;
        let overlay = refused.is_none();
        let fuse = match fuse.filter(|_| !overlay || store.layers().hides_by_name()) {
            Some(program) => probe(&|stack| fuse::mount(program, stack))?.is_none().then(|| program.to_owned()),
            None => None,
        };
        if let Some(error) = refused {
            say_how(&directory, &error, fuse.as_deref());
        }
        for entry in std::fs::read_dir(&directory).map_err(io_error("read", &directory))? {
            let path = entry.map_err(io_error("read", &directory))?.path();
            let key = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match store::read::<SnapshotRecord>(&path.join(RECORD)) {
                Ok(record) if !key.starts_with(TEMPORARY_PREFIX) => {
                    if let Err(e) = store.use_layers(&key, &record.layers) {
                        tracing::warn!("snapshot {key}: {e}");
                    }
                }
                // A record that is there and cannot be read may be of a later version: it stays.
                Err(e) if !e.is_not_found() => tracing::warn!("snapshot {key} is not used: {e}"),
                _ => remove(&path)?,
            }
        }
        let shared = Shared {
            directory,
            empty,
            below,
            store,
            user_attributes: in_user_namespace,
            overlay,
            fuse,
            usages: Mutex::default(),
            measuring: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether fuse-overlayfs stacks what the kernel does not.
    pub fn has_fuse(&self) -> bool {
        self.shared.fuse.is_some()
    }

    /// Whether snapshots are overlays, not copies.
    pub fn has_overlay(&self) -> bool {
        self.shared.overlay
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// Makes the snapshot, or finds it again, and mounts it.
    pub fn create(
        &self,
        key: &str,
        image: &Image,
        writes: &Writes,
        owners: Option<&Owners>,
    ) -> Result<Snapshot, ImageError> {
        let path = self.path(key)?;
        let layers = image.layers.iter().map(|text| text.parse::<Digest>());
        let layers: Vec<Digest> = layers.collect::<Result<_, _>>().map_err(|e| internal(e.to_string()))?;
        let by_name = |diff_id| self.shared.store.layers().extent(diff_id).is_some_and(|extent| extent.hides_by_name);
        let stacked = self.shared.overlay && !layers.iter().any(by_name);
        let fused = !stacked && self.shared.fuse.is_some() && owners.is_none();
        let copied = !(stacked || fused) || owners.is_some_and(|owners| !self.can_show_as(owners));
        let (read_only, sealed, points): (_, _, &[MountPoint]) = match writes {
            Writes::Kept => (false, false, &[]),
            Writes::MountPoints => (true, false, &[]),
            Writes::None(points) => (true, true, points),
        };
        let ids = owners.map(|owners| owners.ids);
        let record =
            SnapshotRecord { version: VERSION, image: image.id.clone(), layers, read_only, sealed, copied, fused, ids };
        match store::read::<SnapshotRecord>(&path.join(RECORD)) {
            // It stays what it was made as, whatever can be had by now.
            Ok(known) if known == (SnapshotRecord { copied: known.copied, fused: known.fused, ..record.clone() }) => {
                return self.mount(&path, &known, owners);
            }
            Ok(known) => {
                let text = format!("snapshot {key} is there already, of image {}", known.image);
                return Err(ImageError::new(ImageErrorKind::Busy, text));
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
        self.shared.store.use_layers(key, &record.layers)?;
        let result = self.make(&path, &record, points).and_then(|()| self.mount(&path, &record, owners));
        if result.is_err() {
            // The error is told; what is left goes at the next open at the latest.
            let _ = remove(&path);
            self.shared.store.release_layers(key);
        }
        result
    }

    fn make(&self, path: &Path, record: &SnapshotRecord, points: &[MountPoint]) -> Result<(), ImageError> {
        // Without a record it is what a crash left.
        remove(path)?;
        make_directory(path)?;
        if record.copied {
            let rootfs = path.join(ROOTFS);
            make_directory(&rootfs)?;
            copy::copy_layers(self.trees(&record.layers), &rootfs, record.ids)?;
            self.copy_root_attributes(&record.layers, &rootfs, record.ids)?;
            points::make(&clone_tree(&rootfs, false).map_err(io_error("clone", &rootfs))?, points)?;
        } else {
            let upper = path.join(UPPER);
            make_directory(&upper)?;
            make_directory(&path.join(WORK))?;
            // Of a sealed one the upper directory is a layer among layers, and shown as they are.
            self.copy_root_attributes(&record.layers, &upper, record.ids.filter(|_| !record.sealed))?;
            if !points.is_empty() {
                points::make(&self.mount_stack(path, record, Access::Write, None)?, points)?;
            }
        }
        store::write_until_power_cut(&path.join(RECORD), record)?;
        reach(Point::SnapshotRecorded)
    }

    /// Whether layers can be shown with other owners than they have on disk.
    fn can_show_as(&self, owners: &Owners) -> bool {
        let tried = clone_tree(&self.shared.empty[0], false);
        tried.and_then(|tree| show_as(tree.as_fd(), owners.user_namespace.as_fd(), false)).is_ok()
    }

    fn mount(&self, path: &Path, record: &SnapshotRecord, owners: Option<&Owners>) -> Result<Snapshot, ImageError> {
        let written = path.join(if record.copied { ROOTFS } else { UPPER });
        let mount = if record.copied {
            clone_tree(&written, record.sealed).map_err(io_error("clone", &written))?
        } else {
            let access = if record.sealed { Access::Read } else { Access::Write };
            self.mount_stack(path, record, access, owners.map(|owners| &*owners.user_namespace))?
        };
        Ok(Snapshot { mount, upper: (!record.read_only).then_some(written) })
    }

    fn mount_stack(
        &self,
        path: &Path,
        record: &SnapshotRecord,
        access: Access,
        owners: Option<&OwnedFd>,
    ) -> Result<OwnedFd, ImageError> {
        let (upper, work) = (path.join(UPPER), path.join(WORK));
        let mut lower: Vec<PathBuf> = self.trees(&record.layers);
        lower.reverse();
        if access == Access::Read {
            lower.insert(0, upper.clone());
        }
        // An image that is mounted as a volume shows nothing but itself.
        if !record.sealed {
            lower.push(self.shared.below.clone());
        }
        // Two at least without an upper, one at least with it.
        lower.extend(self.shared.empty.iter().take(2usize.saturating_sub(lower.len())).cloned());
        let overlay = Overlay {
            lower: &lower,
            upper: (access == Access::Write).then_some((upper.as_path(), work.as_path())),
            user_attributes: self.shared.user_attributes,
            owners: owners.map(AsFd::as_fd),
        };
        let mounted = match (record.fused, &self.shared.fuse) {
            (false, _) => overlay.mount(),
            (true, Some(program)) => fuse::mount(program, &overlay),
            (true, None) => {
                Err(std::io::Error::other("fuse-overlayfs, which it was made with, does not work any more"))
            }
        };
        mounted.map_err(io_error("mount an overlay for", path))
    }

    /// Trees of the layers, lowest first; of a layer that occurs twice the upper one, which has all of the lower's
    /// files.
    fn trees(&self, layers: &[Digest]) -> Vec<PathBuf> {
        let mut seen = HashSet::new();
        let mut trees: Vec<PathBuf> = layers
            .iter()
            .rev()
            .filter(|diff_id| seen.insert(*diff_id))
            .map(|diff_id| self.shared.store.layers().tree(diff_id))
            .collect();
        trees.reverse();
        trees
    }

    /// An overlay's root directory looks like its topmost directory: so that one must look as the image says.
    fn copy_root_attributes(&self, layers: &[Digest], to: &Path, ids: Option<IdRange>) -> Result<(), ImageError> {
        let store = self.shared.store.layers();
        let says_so = |diff_id: &&Digest| store.extent(diff_id).is_some_and(|extent| extent.has_root);
        let mut mode = Mode::from_raw_mode(0o755);
        let (mut uid, mut gid) = (0, 0);
        if let Some(diff_id) = layers.iter().rev().find(says_so) {
            let tree = store.tree(diff_id);
            let stat = statat(CWD, &tree, AtFlags::empty()).map_err(|e| io_error("look at", &tree)(e.into()))?;
            (uid, gid) = (stat.st_uid, stat.st_gid);
            mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        }
        let (uid, gid) = copy::owner(uid, gid, ids);
        chownat(CWD, to, Some(uid), Some(gid), AtFlags::empty())
            .map_err(|e| io_error("change owner of", to)(e.into()))?;
        chmodat(CWD, to, mode, AtFlags::empty()).map_err(|e| io_error("change mode of", to)(e.into()))
    }

    /// Removes the snapshot, then layers that only it needed; that there is none is fine.
    pub fn remove(&self, key: &str) -> Result<(), ImageError> {
        let path = self.path(key)?;
        let gone = self.shared.directory.join(format!("{TEMPORARY_PREFIX}{}", ContainerId::random().short()));
        match std::fs::rename(&path, &gone) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(io_error("remove", &path)(e)),
        }
        let unused = self.shared.store.release_layers(key);
        self.usages().remove(key);
        remove(&gone)?;
        if !unused.is_empty() {
            drop(self.shared.store.collect_among(&unused));
        }
        Ok(())
    }

    /// Removes every snapshot that is not in `keep`; goes on after an error, and gives the first.
    pub fn retain(&self, keep: &HashSet<String>) -> Result<(), ImageError> {
        let mut result = Ok(());
        let kept =
            |key: &String| keep.contains(key) || key.split_once('.').is_some_and(|(owner, _)| keep.contains(owner));
        for key in self.keys()?.into_iter().filter(|key| !kept(key)) {
            result = result.and(self.remove(&key));
        }
        result
    }

    fn keys(&self) -> Result<Vec<String>, ImageError> {
        let directory = &self.shared.directory;
        let entries = std::fs::read_dir(directory).map_err(io_error("read", directory))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter(|name| !name.starts_with('.')).collect())
    }

    /// What the container wrote; at most [`USAGE_LIFETIME`] old.
    pub fn usage(&self, key: &str) -> Result<Usage, ImageError> {
        let path = self.path(key)?;
        if let Some((at, usage)) = self.usages().get(key)
            && at.elapsed() < USAGE_LIFETIME
        {
            return Ok(*usage);
        }
        let written = [UPPER, ROOTFS].map(|name| path.join(name)).into_iter().find(|path| path.exists());
        let Some(written) = written else {
            return Err(ImageError::new(ImageErrorKind::NotFound, format!("there is no snapshot {key}")));
        };
        let usage = of_tree(&written).map_err(|e| io_error("measure", &written)(e.into()))?;
        self.usages().insert(key.to_owned(), (Instant::now(), usage));
        Ok(usage)
    }

    /// How long ago it was measured what the container wrote, and how much it was; does not block.
    pub fn measured(&self, key: &str) -> Option<(Duration, Usage)> {
        self.usages().get(key).map(|(at, usage)| (at.elapsed(), *usage))
    }

    /// Of all snapshots, as last measured; does not block. What is out of date is measured anew in the background.
    pub fn total(&self) -> Usage {
        let mut total = Usage::default();
        for (_, usage) in self.usages().values() {
            total.bytes += usage.bytes;
            total.inodes += usage.inodes;
        }
        self.measure_again();
        total
    }

    /// In the background, one after the other, and at rest for most of the time; what is fresh is left.
    pub fn measure_again(&self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !self.shared.measuring.swap(true, Ordering::AcqRel)
        {
            let snapshots = self.clone();
            runtime.spawn_blocking(move || {
                for key in snapshots.keys().unwrap_or_default() {
                    let begun = Instant::now();
                    // One that goes meanwhile has no usage.
                    let _ = snapshots.usage(&key);
                    if begun.elapsed() > MEASURE_NOTICEABLE {
                        std::thread::sleep((begun.elapsed() * MEASURE_REST).min(MEASURE_REST_LONGEST));
                    }
                }
                snapshots.shared.measuring.store(false, Ordering::Release);
            });
        }
    }

    /// The path of what was written, for a usage's mountpoint.
    pub fn path(&self, key: &str) -> Result<PathBuf, ImageError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if key.is_empty() || key.len() > KEY_LIMIT_CHARS || key.starts_with('.') || !key.bytes().all(plain) {
            let shown: String = key.chars().take(KEY_LIMIT_CHARS).collect();
            return Err(ImageError::new(ImageErrorKind::Invalid, format!("{shown:?} is no name for a snapshot")));
        }
        Ok(self.shared.directory.join(key))
    }

    fn usages(&self) -> MutexGuard<'_, HashMap<String, (Instant, Usage)>> {
        self.shared.usages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What may be written through a snapshot's mount.
#[derive(Debug, Clone)]
pub enum Writes {
    /// Everything, and it counts as the container's.
    Kept,
    /// Mount points, until whoever runs the container makes its root read-only.
    MountPoints,
    /// Nothing: these mount points are made before it is mounted.
    None(Vec<MountPoint>),
}

/// Whom the files of a snapshot belong to when its container has a user namespace of its own.
#[derive(Debug, Clone)]
pub struct Owners {
    /// The namespace.
    pub user_namespace: Arc<OwnedFd>,
    /// What it maps, users and groups alike.
    pub ids: IdRange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// Tries what every snapshot will do, with empty directories; answers why it does not work.
fn probe_stack(
    directory: &Path,
    empty: &[PathBuf],
    user_attributes: bool,
    mount: &dyn Fn(&Overlay<'_>) -> std::io::Result<OwnedFd>,
) -> Result<Option<std::io::Error>, ImageError> {
    let path = directory.join(format!("{TEMPORARY_PREFIX}probe"));
    remove(&path)?;
    let (upper, work, below) = (path.join(UPPER), path.join(WORK), path.join("below"));
    for directory in [&upper, &work, &below, &below.join(WORK)] {
        make_directory(directory)?;
    }
    let lower = [below, empty[0].clone()];
    let overlay = Overlay { lower: &lower, upper: Some((&upper, &work)), user_attributes, owners: None };
    // Some file systems take the mount and then no whiteout in it.
    let result = mount(&overlay).and_then(|mount| Ok(unlinkat(&mount, WORK, AtFlags::REMOVEDIR)?));
    remove(&path)?;
    Ok(result.err())
}

fn say_how(directory: &Path, refused: &std::io::Error, fuse: Option<&Path>) {
    let (directory, mend) = (directory.display(), "a root directory on ext4, xfs or btrfs avoids that");
    match fuse {
        Some(_) => {
            tracing::warn!("{directory} takes no overlay mounts ({refused}): fuse-overlayfs stacks layers; {mend}")
        }
        None => tracing::warn!(
            "{directory} takes no overlay mounts ({refused}): every container gets a copy of its image; install \
             fuse-overlayfs, or {mend}"
        ),
    }
}

fn remove(path: &Path) -> Result<(), ImageError> {
    remove_path(path).map_err(|e| io_error("remove", path)(e.into()))
}

fn internal(message: String) -> ImageError {
    ImageError::new(ImageErrorKind::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_earlier_releases_are_read() {
        for path in store::of_earlier_releases("snapshot.json") {
            let record: SnapshotRecord = store::read(&path).expect("read");
            assert_eq!(record.version, VERSION);
        }
    }
}
