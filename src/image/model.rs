//! What the image service speaks of: images, what they say of themselves once validated, progress, usage.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// An image that is here, whole.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:...` of its config: the one id of PullImage, Image, Container and ContainerStatus.
    pub id: String,
    /// `registry/repository:tag`.
    pub repo_tags: Vec<String>,
    /// `registry/repository@sha256:...`.
    pub repo_digests: Vec<String>,
    /// Unpacked bytes on disk, and those of compressed blobs where they are kept.
    pub size_bytes: u64,
    /// Never collected.
    pub pinned: bool,
    /// Validated.
    pub config: ImageConfig,
    /// Diff ids, lowest first.
    pub layers: Vec<String>,
}

/// What an image says about how it wants to be run, after validation. No raw bytes of a config go further.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    /// USER.
    pub user: ImageUser,
    /// ENV, `NAME=value`, no NUL.
    pub env: Vec<String>,
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub command: Vec<String>,
    /// WORKDIR, absolute; empty: `/`.
    pub working_dir: String,
    /// VOLUME destinations, absolute and normalised.
    pub volumes: Vec<String>,
    /// STOPSIGNAL as a number.
    pub stop_signal: Option<i32>,
    /// LABEL: for showing, never for control.
    pub labels: BTreeMap<String, String>,
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// As written in the config.
    pub created: String,
}

/// USER of an image: user and group, each a number below 2^31 or a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// None: root.
    pub user: Option<Principal>,
    /// None: the user's own group.
    pub group: Option<Principal>,
}

/// A number or a name to be looked up in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// Below 2^31.
    Id(u32),
    /// Looked up in the root file system's /etc/passwd or /etc/group.
    Name(String),
}

/// Credentials of one pull.
#[derive(Clone)]
pub enum Credentials {
    /// User and password.
    Basic {
        /// User.
        username: String,
        /// Password.
        password: String,
    },
    /// An identity (refresh) token.
    IdentityToken(String),
    /// A bearer token for the registry itself.
    RegistryToken(String),
}

/// How far one layer is.
#[derive(Debug, Clone)]
pub struct LayerProgress {
    /// Of the blob.
    pub digest: String,
    /// Compressed bytes; 0: not known.
    pub total_bytes: u64,
    /// Compressed bytes so far.
    pub done_bytes: u64,
    /// What happens to it.
    pub phase: LayerPhase,
}

/// See [`LayerProgress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerPhase {
    /// Not begun.
    Waiting,
    /// On its way.
    Fetching,
    /// Was there already.
    Reused,
    /// Committed.
    Done,
}

/// Receives progress; must return at once.
pub type ProgressSink = Arc<dyn Fn(LayerProgress) + Send + Sync>;

/// Where images live and how they are fetched.
#[derive(Debug, Clone, Default)]
pub struct ImageOptions {
    /// Disk directory of the image service: `ROOT/images`.
    pub root: PathBuf,
    /// Directory that holds `HOST/hosts.toml`.
    pub registry_config_path: PathBuf,
    /// Whether overlay mounts need `userxattr` and whiteouts `user.overlay.*` (we are in a user namespace).
    pub in_user_namespace: bool,
    /// Names of images that nothing removes; a `*` at the end stands for any rest.
    pub pinned: Vec<String>,
    /// Whether manifests and compressed blobs are kept beside what is unpacked.
    pub keep_blobs: bool,
    /// The registry that completes names without one; empty: such names are not pulled.
    pub short_names: String,
    /// Which images must be signed.
    pub policy: Vec<crate::config::SignatureRule>,
    /// The program that stacks layers where the kernel does not; none: they are copied there.
    pub fuse_overlayfs: Option<PathBuf>,
    /// The node's network namespace, where it is not the one that we are in.
    pub node_network: Option<Arc<OwnedFd>>,
}

/// Bytes and inodes used by images and snapshots.
#[derive(Debug, Clone, Default)]
pub struct FilesystemUsage {
    /// The directory.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// A container's root file system.
#[derive(Debug)]
pub struct Snapshot {
    /// A detached mount (fsmount or open_tree), attached by the supervisor in its own mount namespace; through it
    /// the daemon reads /etc/passwd. Nothing is mounted in the daemon's namespace.
    pub mount: OwnedFd,
    /// Where the container's own writes go; none with a read-only root.
    pub upper: Option<PathBuf>,
}
