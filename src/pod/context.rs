//! What every piece of work in the domain stands on, shared by all pods' tasks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;

use crate::executor::client::Template;
use crate::image::Images;
use crate::pod::error::PodError;
use crate::pod::events::Events;
use crate::pod::facts::Facts;
use crate::pod::network::PodNetworks;
use crate::pod::record::Layout;
use crate::pod::runtimes::Runtimes;
use crate::pod::spec::Modes;
use crate::pod::stats::Stats;
use crate::pod::table::Table;
use crate::proto::{cri, supervisor as wire};
use crate::rootless::Node;
use crate::sys::crash::{self, Point};

/// See the module.
pub(crate) struct Context {
    pub(crate) node: Arc<Node>,
    pub(crate) images: Images,
    pub(crate) template: Template,
    pub(crate) networks: PodNetworks,
    pub(crate) layout: Layout,
    pub(crate) facts: Facts,
    pub(crate) events: Events,
    pub(crate) table: Table,
    pub(crate) stats: Stats,
    pub(crate) runtimes: Runtimes,
    /// Later ones go before earlier ones.
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
}

/// Runs what blocks (files, system calls) where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PodError> + Send + 'static,
) -> Result<T, PodError> {
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.unwrap_or_else(|e| Err(PodError::internal(format!("work of the daemon ended early: {e}"))))
}

/// A panic in `work` is an error of its own: what it had begun is undone as after any other.
pub(crate) async fn caught<T>(work: impl Future<Output = Result<T, PodError>>) -> Result<T, PodError> {
    let done = std::panic::AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or_else(|_| Err(PodError::internal("the work ended by a defect of the daemon: see its log")))
}

/// Between two steps: nothing, but where a test wishes otherwise.
pub(crate) async fn pass(point: Point) -> Result<(), PodError> {
    crash::pass(point).await.map_err(|e| PodError::io(format_args!("go on from {}", point.name()), &e))
}

/// As [`pass`], where it may block.
pub(crate) fn reach(point: Point) -> Result<(), PodError> {
    crash::reach(point).map_err(|e| PodError::io(format_args!("go on from {}", point.name()), &e))
}

fn namespace_options(config: &cri::PodSandboxConfig) -> Option<&cri::NamespaceOption> {
    config.linux.as_ref()?.security_context.as_ref()?.namespace_options.as_ref()
}

fn mode(value: i32) -> wire::NamespaceMode {
    // Both enumerations have the same numbers.
    wire::NamespaceMode::try_from(value).unwrap_or(wire::NamespaceMode::Pod)
}

/// Which namespaces a pod has to itself.
pub(crate) fn pod_modes(config: &cri::PodSandboxConfig) -> Modes {
    let options = namespace_options(config).cloned().unwrap_or_default();
    Modes { network: mode(options.network), ipc: mode(options.ipc), pid: mode(options.pid) }
}

/// Of a container: network and IPC are its pod's, the PID namespace is of its own choice.
pub(crate) fn container_modes(pod: &cri::PodSandboxConfig, config: &cri::ContainerConfig) -> Modes {
    let pod = pod_modes(pod);
    let linux = config.linux.as_ref();
    let options = linux.and_then(|l| l.security_context.as_ref()).and_then(|s| s.namespace_options.as_ref());
    let wish = options.map_or(pod.pid, |o| mode(o.pid));
    let pid = match (wish, pod.pid) {
        // The pod's namespace is what the pod has: the node's, its own, or none that could be shared.
        (wire::NamespaceMode::Pod, of_pod) => of_pod,
        (other, _) => other,
    };
    Modes { pid, ..pod }
}

/// The name inside the pod.
pub(crate) fn hostname<'a>(config: &'a cri::PodSandboxConfig, facts: &'a Facts) -> &'a str {
    match config.hostname.as_str() {
        "" => &facts.hostname,
        name => name,
    }
}

/// As the proto says: paths are texts.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// `pod default/web`, for messages.
pub(crate) fn whom_pod(config: &cri::PodSandboxConfig) -> String {
    let metadata = config.metadata.clone().unwrap_or_default();
    format!("pod {}/{}", metadata.namespace, metadata.name)
}

/// `container app of pod default/web`, for messages.
pub(crate) fn whom_container(pod: &cri::PodSandboxConfig, config: &cri::ContainerConfig) -> String {
    let name = config.metadata.as_ref().map_or("", |m| m.name.as_str());
    format!("container {name} of {}", whom_pod(pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::NamespaceMode::{Container, Node, Pod, Target};

    fn options(pid: wire::NamespaceMode) -> cri::NamespaceOption {
        cri::NamespaceOption { pid: pid as i32, ..Default::default() }
    }

    #[test]
    fn the_pid_namespace_is_the_containers_choice_within_what_the_pod_has() {
        for (of_pod, wish, expected) in [
            (Pod, None, Pod),
            (Container, None, Container),
            (Node, Some(Pod), Node),
            (Container, Some(Pod), Container),
            (Pod, Some(Container), Container),
            (Container, Some(Target), Target),
        ] {
            let mut pod = cri::PodSandboxConfig::default();
            let security = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.namespace_options = Some(options(of_pod));
            let mut config = cri::ContainerConfig::default();
            let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.namespace_options = wish.map(options);
            assert_eq!(container_modes(&pod, &config).pid, expected, "{of_pod:?} {wish:?}");
        }
    }
}
