//! The daemon's side: the template that forks supervisors, and a connection to each supervisor.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::proto::supervisor as wire;

/// What went wrong on the way to a supervisor or inside it.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The supervisor answered with an error.
    #[error("{message}")]
    Refused {
        /// For the gRPC code.
        kind: wire::ErrorKind,
        /// What happened, to what, what to do.
        message: String,
    },
    /// The supervisor is gone: its pod is dead.
    #[error("the pod's supervisor is gone")]
    Gone,
    /// It did not answer in time.
    #[error("the pod's supervisor did not answer within {0:?}")]
    Timeout(std::time::Duration),
    /// A system call failed.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Where the template finds the node. Descriptors are duplicated, never consumed.
#[derive(Debug)]
pub struct TemplateOptions {
    /// The sealed copy of our own binary, or its path.
    pub executable: PathBuf,
    /// The node's network, UTS and IPC namespaces.
    pub namespaces: Vec<OwnedFd>,
}

/// `cricket supervise`: a single-threaded process of our binary, child of the daemon, from which supervisors are
/// forked. It ends with the daemon; the supervisors do not.
#[derive(Debug, Clone)]
pub struct Template {}

impl Template {
    /// Starts the template. It is started again when it is found dead.
    pub async fn start(_options: TemplateOptions) -> Result<Self, ExecutorError> {
        todo!()
    }

    /// Forks a supervisor and connects to it. Not cancellation safe: run it in a task that is not dropped.
    pub async fn spawn(&self, _sandbox: wire::SandboxSpec) -> Result<Supervisor, ExecutorError> {
        todo!()
    }
}

/// A connection to one pod's supervisor. Cheap to clone; requests may be under way side by side. Dropping a call's
/// future forgets the answer, not the work.
#[derive(Debug, Clone)]
pub struct Supervisor {}

/// The three descriptors of an exec without terminal.
#[derive(Debug)]
pub struct Stdio {
    /// Read by the process.
    pub stdin: OwnedFd,
    /// Written by the process.
    pub stdout: OwnedFd,
    /// Written by the process.
    pub stderr: OwnedFd,
}

impl Supervisor {
    /// Connects to the supervisor that listens at `STATE_DIR/supervisor.sock`; `Gone` when nobody does.
    pub async fn connect(_state_dir: &Path) -> Result<(Self, wire::HelloReply), ExecutorError> {
        todo!()
    }

    /// Of the supervisor, in the node's PID namespace.
    pub fn pid(&self) -> i32 {
        todo!()
    }

    /// The events, once; the channel closes when the supervisor is gone.
    pub fn take_events(&self) -> Option<mpsc::Receiver<wire::Event>> {
        todo!()
    }

    /// See the message of the same name.
    pub async fn create_container(
        &self,
        _request: wire::CreateContainer,
        _rootfs: OwnedFd,
    ) -> Result<wire::CreateContainerReply, ExecutorError> {
        todo!()
    }

    /// Without terminal: `stdio` is given and nothing comes back. With one: its master comes back.
    pub async fn exec(
        &self,
        _request: wire::Exec,
        _stdio: Option<Stdio>,
    ) -> Result<(wire::ExecReply, Option<OwnedFd>), ExecutorError> {
        todo!()
    }

    /// Copies output to `stdout` and `stderr` from now on; the container's stdin comes back if asked for.
    pub async fn attach(
        &self,
        _request: wire::Attach,
        _stdout: Option<OwnedFd>,
        _stderr: Option<OwnedFd>,
    ) -> Result<Option<OwnedFd>, ExecutorError> {
        todo!()
    }

    /// A TCP connection made inside the pod's network namespace.
    pub async fn connect_port(&self, _port: u16) -> Result<OwnedFd, ExecutorError> {
        todo!()
    }

    /// Interface counters of the pod's network namespace.
    pub async fn network(&self) -> Result<wire::NetworkReply, ExecutorError> {
        todo!()
    }

    /// Every operation that answers nothing: start, signal, remove, resize, reopen, close stdin, pause, shutdown.
    pub async fn call(&self, _op: wire::request::Op) -> Result<(), ExecutorError> {
        todo!()
    }
}
