//! Opens what the services stand on, in the order in which each needs the one before.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{DaemonError, network, session_urls};
use crate::cri::{Backend, Facts};
use crate::executor::client::{Template, TemplateOptions};
use crate::image::{ImageOptions, Images};
use crate::metrics::{self, Calls};
use crate::pod::{Pods, PodsOptions};
use crate::rootless::{Node, NodeKind};
use crate::streaming;
use crate::sys;

/// Below the root.
const IMAGES: &str = "images";

/// Images, then the template, then the network, then the pods with everything that is left of them, then the streaming
/// server.
pub async fn open(facts: &Facts, calls: &Calls, closing: CancellationToken) -> Result<Backend, DaemonError> {
    let (config, node) = (&facts.config, &facts.node);
    let images = Images::open(ImageOptions {
        root: config.root.join(IMAGES),
        registry_config_path: config.registry_config_path.clone(),
        in_user_namespace: node.kind != NodeKind::Root,
        pinned: config.pinned_images.clone(),
        keep_blobs: config.keep_blobs,
        short_names: config.short_names.clone(),
        policy: config.policy.clone(),
        fuse_overlayfs: Some(config.fuse_overlayfs.clone()).filter(|program| !program.as_os_str().is_empty()),
        node_network: node_network(node)?,
    })
    .await?;
    let template = Template::start(template_options(node)?).await?;
    let networks = network::start(facts).await;
    let (config_of_pods, node_of_pods) = (Arc::clone(config), Arc::clone(node));
    let options =
        PodsOptions { config: config_of_pods, node: node_of_pods, images: images.clone(), template, networks };
    let pods = Pods::open(options).await?;
    let listeners = session_urls::listeners(config.streaming_address, node)?;
    let server = streaming::Server::start(listeners, Arc::new(pods.clone()))?;
    if let Some(address) = config.metrics_address {
        metrics::Server::start(address, calls, pods.clone(), images.clone(), closing).await?;
    }
    sys::heap::trim();
    let sessions = Arc::new(session_urls::Urls(server));
    Ok(Backend { pods, images, sessions, after_large_work: sys::heap::trim })
}

/// Pulls go by the host's network, which is not that of a node we made.
fn node_network(node: &Node) -> Result<Option<Arc<OwnedFd>>, DaemonError> {
    let copy = (node.kind == NodeKind::Made).then(|| duplicate(&node.network)).transpose()?;
    Ok(copy.map(Arc::new))
}

fn duplicate(namespace: &OwnedFd) -> Result<OwnedFd, DaemonError> {
    namespace.as_fd().try_clone_to_owned().map_err(DaemonError::io("duplicating a namespace"))
}

fn template_options(node: &Node) -> Result<TemplateOptions, DaemonError> {
    // Elsewhere the template inherits them from us, and may lack the right to join them: those that a user namespace
    // found belong to whoever made it.
    let namespaces = match node.kind {
        NodeKind::Made => vec![duplicate(&node.network)?, duplicate(&node.uts)?, duplicate(&node.ipc)?],
        NodeKind::Found | NodeKind::Root => Vec::new(),
    };
    Ok(TemplateOptions { executable: node.executable_path(), namespaces })
}
