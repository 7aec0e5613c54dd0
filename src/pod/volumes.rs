//! Volumes that no path of the pod's supervisor leads to: they are made here, as detached mounts, and passed beside the
//! request; the supervisor attaches number N at BUNDLE/volumes/N, from where the specification binds it.
//!
//! * Images as volumes: a read-only mount of the image's layers, which lives and dies with a snapshot of its own.
//! * Bidirectional binds: the pod's mounts are slaves of the node's, so that a mount made in the container would end at
//!   the pod. A copy that was taken in the node is a peer of what it was copied from, wherever it is attached.
//!
//! And the directories that an image declares (VOLUME): they are made in the root, and stay writable where it is not.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::executor::protocol::DESCRIPTOR_LIMIT;
use crate::image::{ImageConfig, Images, Owners, Writes};
use crate::pod::error::{PodError, quoted};
use crate::pod::{mounts, paths};
use crate::proto::cri;
use crate::store::ContainerId;
use crate::sys::overlay::clone_whole_tree;
use crate::sys::owners::IdRange;
use crate::sys::propagation::{self, Propagation};

/// Most of one container; the root's descriptor goes beside them.
const VOLUME_LIMIT: usize = DESCRIPTOR_LIMIT - 1;
/// Where the supervisor attaches them, from the bundle.
const DIRECTORY: &str = "volumes";
/// What a kubelet looks for in the error of an image that cannot be mounted.
const IMAGE_FAILED: &str = "ImageVolumeMountFailed";
/// Places of every container's own, which no image's VOLUME covers.
const NEVER_VOLUMES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Of one container.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    /// For the supervisor, in the order of their numbers.
    pub(crate) mounts: Vec<OwnedFd>,
    /// Where the specification finds the source of the request's mount of that number.
    sources: BTreeMap<usize, PathBuf>,
    /// VOLUMEs of the container's image: real paths in its root.
    pub(crate) declared: Vec<PathBuf>,
}

/// The image that a mount of the request is of, if it is of one.
fn image_of(mount: &cri::Mount) -> Option<&str> {
    mount.image.as_ref().map(|image| image.image.as_str()).filter(|name| !name.is_empty())
}

/// Names of a container's snapshots: of its root, and of the images that it mounts.
pub(crate) fn snapshots(id: &ContainerId, config: &cri::ContainerConfig) -> Vec<String> {
    let images = config.mounts.iter().enumerate().filter(|(_, mount)| image_of(mount).is_some());
    std::iter::once(id.to_string()).chain(images.map(|(number, _)| snapshot(id, number))).collect()
}

fn snapshot(id: &ContainerId, number: usize) -> String {
    format!("{id}.volume-{number}")
}

/// Mounts the images that the request names, each with the number of its mount.
pub(crate) async fn mount_images(
    images: &Images,
    id: &ContainerId,
    config: &cri::ContainerConfig,
    owners: Option<Owners>,
) -> Result<Vec<(usize, OwnedFd)>, PodError> {
    let mut mounted = Vec::new();
    for (number, mount) in config.mounts.iter().enumerate() {
        let Some(name) = image_of(mount) else { continue };
        if !mount.host_path.is_empty() {
            let place = quoted(&mount.container_path);
            return Err(PodError::invalid(format!(
                "the mount at {place:?} is of a path and of an image; it can be one"
            )));
        }
        let image = images.find(name).ok_or_else(|| {
            let message = format!("{IMAGE_FAILED}: there is no image {:?} here: pull it first", quoted(name));
            PodError::new(crate::pod::PodErrorKind::NotFound, message)
        })?;
        let made = images.snapshot_for(&snapshot(id, number), &image, Writes::None(Vec::new()), owners.clone()).await;
        let made = made.map_err(|error| {
            PodError::precondition(format!("{IMAGE_FAILED}: the image {:?} cannot be mounted: {error}", quoted(name)))
        })?;
        mounted.push((number, made.mount));
    }
    Ok(mounted)
}

impl Volumes {
    /// Takes the images' mounts, copies what is bidirectional, and makes the VOLUMEs in the root.
    pub(crate) fn gather(
        bundle: &Path,
        config: &cri::ContainerConfig,
        images: Vec<(usize, OwnedFd)>,
        (image, root): (&ImageConfig, &OwnedFd),
        ids: Option<IdRange>,
    ) -> Result<Self, PodError> {
        let mut volumes = Self { declared: declared(image, root, ids)?, ..Self::default() };
        for (number, mount) in images {
            let below = below_image(&mount, &config.mounts[number].image_sub_path)?;
            volumes.add(bundle, number, mount, &below);
        }
        for (number, wish) in config.mounts.iter().enumerate() {
            if image_of(wish).is_none() && wish.propagation() == cri::MountPropagation::PropagationBidirectional {
                if ids.is_some() {
                    let place = quoted(&wish.container_path);
                    return Err(PodError::invalid(format!(
                        "the mount at {place:?} is bidirectional, which a pod with a user namespace of its own cannot have"
                    )));
                }
                volumes.add(bundle, number, peer_of(wish)?, Path::new(""));
            }
        }
        match volumes.mounts.len() > VOLUME_LIMIT {
            true => Err(PodError::invalid(format!(
                "more than {VOLUME_LIMIT} of the container's mounts are of images or bidirectional"
            ))),
            false => Ok(volumes),
        }
    }

    fn add(&mut self, bundle: &Path, number: usize, mount: OwnedFd, below: &Path) {
        let at = bundle.join(DIRECTORY).join(self.mounts.len().to_string());
        // Joining nothing would end the path of a file with a slash.
        self.sources.insert(number, if below.as_os_str().is_empty() { at } else { at.join(below) });
        self.mounts.push(mount);
    }

    /// See [`Self::sources`].
    pub(crate) fn source_of(&self, number: usize) -> Option<&Path> {
        self.sources.get(&number).map(PathBuf::as_path)
    }
}

/// A copy of what is mounted at the source, which goes on to share mounts with it.
fn peer_of(wish: &cri::Mount) -> Result<OwnedFd, PodError> {
    let destination = mounts::destination(&wish.container_path)?;
    let source = mounts::source(&wish.host_path, &destination)?;
    let refused = |error| PodError::io(format_args!("look at the mount of {}", source.display()), &error);
    let (point, mode) = propagation::of(&source).map_err(refused)?;
    if mode != Propagation::Shared {
        return Err(PodError::precondition(format!(
            "the mount at {} is bidirectional, but its source {} is on {}, which is not a shared mount: \
             mount --make-rshared {}",
            destination.display(),
            source.display(),
            point.display(),
            point.display()
        )));
    }
    clone_whole_tree(&source).map_err(refused)
}

/// The real path of `sub_path` in the image, from the image's root: no link leads out of it.
fn below_image(mount: &OwnedFd, sub_path: &str) -> Result<PathBuf, PodError> {
    if sub_path.is_empty() {
        return Ok(PathBuf::new());
    }
    paths::below("the sub path of an image", sub_path)?;
    let real = real_path(mount, Path::new(sub_path), OFlags::empty()).map_err(|error| {
        PodError::precondition(format!("{IMAGE_FAILED}: {:?} of the image cannot be used: {error}", quoted(sub_path)))
    })?;
    Ok(real.strip_prefix("/").unwrap_or(&real).to_owned())
}

/// The VOLUMEs, made where the image lacks them.
fn declared(image: &ImageConfig, root: &OwnedFd, ids: Option<IdRange>) -> Result<Vec<PathBuf>, PodError> {
    let mut places = Vec::new();
    for volume in &image.volumes {
        let place = paths::inside("the image's volume", volume)?;
        paths::make_in_root(root, &place, ids)?;
        let real = real_path(root, &place, OFlags::DIRECTORY)
            .map_err(|error| PodError::precondition(format!("the image's volume {:?}: {error}", quoted(volume))))?;
        if real != Path::new("/") && !NEVER_VOLUMES.iter().any(|never| real.starts_with(never)) {
            places.push(real);
        }
    }
    Ok(places)
}

/// Where a path of a detached mount leads, links resolved inside it. Nothing runs in there yet, so that it stays true.
fn real_path(mount: &OwnedFd, path: &Path, extra: OFlags) -> std::io::Result<PathBuf> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(mount, path, OFlags::PATH | OFlags::CLOEXEC | extra, Mode::empty(), resolve)?;
    let real = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    let inside = real.strip_prefix("/").map_err(std::io::Error::other)?;
    // The kernel's text is not taken on trust: it must lead to the same place, without any link.
    let strict = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let here = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
    let again = openat2(mount, here, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), strict)?;
    let (one, other) = (rustix::fs::fstat(&found)?, rustix::fs::fstat(&again)?);
    match (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino) {
        true => Ok(real),
        false => Err(std::io::Error::other(format!("{} is not what it seems", real.display()))),
    }
}
