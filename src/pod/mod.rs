//! The domain: pods and containers, their states, one driver task per pod.

pub mod session;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::executor::client::Template;
use crate::image::Images;
use crate::proto::cri;
use crate::rootless::Node;

/// Kinds of [`PodError`]; `cri/status.rs` is the one table from here to gRPC codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodErrorKind {
    /// Unknown id.
    NotFound,
    /// The name is taken by another object.
    AlreadyExists,
    /// The request is malformed.
    Invalid,
    /// Not in this state.
    FailedPrecondition,
    /// A deadline passed.
    DeadlineExceeded,
    /// Disk, memory or a quota is exhausted.
    ResourceExhausted,
    /// Honest refusal.
    Unimplemented,
    /// Could be tried again.
    Unavailable,
    /// Everything else.
    Internal,
}

/// What went wrong: what happened, to what, what to do. At most 4 KiB of text.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct PodError {
    /// For the gRPC code.
    pub kind: PodErrorKind,
    /// The text.
    pub message: String,
}

/// What an ExecSync brought back.
#[derive(Debug, Clone, Default)]
pub struct ExecOutput {
    /// At most what one 16 MiB answer holds together with `stderr`.
    pub stdout: Vec<u8>,
    /// See `stdout`.
    pub stderr: Vec<u8>,
    /// As a shell says it.
    pub exit_code: i32,
}

/// What the domain stands on.
pub struct PodsOptions {
    /// The configuration.
    pub config: Arc<Config>,
    /// The node.
    pub node: Arc<Node>,
    /// The image service.
    pub images: Images,
    /// Forks supervisors.
    pub template: Template,
}

/// All pods. Cheap to clone. Handlers call it and may be dropped at any point: the work goes on in the pod's own
/// task, and a repeated request joins it. Wherever an id is taken, a unique prefix of three characters or more is.
#[derive(Clone)]
pub struct Pods {}

impl Pods {
    /// Rebuilds everything from records and live supervisors.
    pub async fn open(_options: PodsOptions) -> Result<Self, PodError> {
        todo!()
    }

    /// See CRI's RPC of that name, as all below. Answers the pod's id.
    pub async fn run_pod_sandbox(&self, _config: cri::PodSandboxConfig, _handler: String) -> Result<String, PodError> {
        todo!()
    }

    /// Idempotent; what is gone is stopped.
    pub async fn stop_pod_sandbox(&self, _id: &str) -> Result<(), PodError> {
        todo!()
    }

    /// Idempotent; what is gone is removed.
    pub async fn remove_pod_sandbox(&self, _id: &str) -> Result<(), PodError> {
        todo!()
    }

    /// With the statuses of its containers; `info` only if verbose.
    pub fn pod_sandbox_status(&self, _id: &str, _verbose: bool) -> Result<cri::PodSandboxStatusResponse, PodError> {
        todo!()
    }

    /// From memory.
    pub fn list_pod_sandbox(&self, _filter: Option<&cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
        todo!()
    }

    /// Answers the container's id.
    pub async fn create_container(
        &self,
        _pod_id: &str,
        _config: cri::ContainerConfig,
        _sandbox_config: Option<cri::PodSandboxConfig>,
    ) -> Result<String, PodError> {
        todo!()
    }

    /// Starts a created container.
    pub async fn start_container(&self, _id: &str) -> Result<(), PodError> {
        todo!()
    }

    /// The stop signal, then SIGKILL after `timeout`. Idempotent.
    pub async fn stop_container(&self, _id: &str, _timeout: Duration) -> Result<(), PodError> {
        todo!()
    }

    /// Kills it if need be. Idempotent.
    pub async fn remove_container(&self, _id: &str) -> Result<(), PodError> {
        todo!()
    }

    /// `info` only if verbose.
    pub fn container_status(&self, _id: &str, _verbose: bool) -> Result<cri::ContainerStatusResponse, PodError> {
        todo!()
    }

    /// From memory.
    pub fn list_containers(&self, _filter: Option<&cri::ContainerFilter>) -> Vec<cri::Container> {
        todo!()
    }

    /// Runs a command to its end; past `timeout` (none: for ever) it is dead and the error is DeadlineExceeded.
    pub async fn exec_sync(
        &self,
        _id: &str,
        _command: Vec<String>,
        _timeout: Option<Duration>,
    ) -> Result<ExecOutput, PodError> {
        todo!()
    }

    /// After the kubelet moved the file away: opens a new one.
    pub async fn reopen_container_log(&self, _id: &str) -> Result<(), PodError> {
        todo!()
    }

    /// Checks that an exec or attach may begin (the container runs) before a URL is given out; answers the full id.
    pub fn check_session(&self, _container_id: &str) -> Result<String, PodError> {
        todo!()
    }

    /// Which containers use an image id: for `image list`, and to protect images.
    pub fn image_users(&self) -> HashMap<String, Vec<String>> {
        todo!()
    }
}

impl session::Sessions for Pods {
    fn exec(&self, _request: session::ExecRequest) -> session::SessionFuture<'_, session::Session> {
        todo!()
    }
    fn attach(&self, _request: session::AttachRequest) -> session::SessionFuture<'_, session::Session> {
        todo!()
    }
    fn port_forward(&self, _pod_id: String, _port: u16) -> session::SessionFuture<'_, std::os::fd::OwnedFd> {
        todo!()
    }
}
