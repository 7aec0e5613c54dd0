//! What the streaming server gets from the domain: descriptors of a session, and how it ends.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;

/// Why a session could not begin.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SessionError {
    /// Whether what was named is not there (404), or something else went wrong (500).
    pub not_found: bool,
    /// What happened, to what, what to do.
    pub message: String,
}

/// How the process of an exec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// As a shell says it: 128 + signal when killed by one.
    pub code: i32,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A command to run in a container.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// The container's id.
    pub container_id: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// With a terminal (then there is no stderr).
    pub tty: bool,
    /// Which streams are wanted.
    pub stdin: bool,
    /// See `stdin`.
    pub stdout: bool,
    /// See `stdin`.
    pub stderr: bool,
}

/// To join the streams of a running container.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The container's id.
    pub container_id: String,
    /// The container's own setting; a mismatch is an error.
    pub tty: bool,
    /// Which streams are wanted.
    pub stdin: bool,
    /// See `stdin`.
    pub stdout: bool,
    /// See `stdin`.
    pub stderr: bool,
}

/// The streams of a session. All descriptors are close-on-exec pipes, or the terminal's master in `terminal`.
/// Dropping the session ends it: the process of an exec is killed, an attached client is detached.
pub struct Session {
    /// Written by the client's side; closing it is the end of file.
    pub stdin: Option<OwnedFd>,
    /// Read by the client's side.
    pub stdout: Option<OwnedFd>,
    /// Read by the client's side.
    pub stderr: Option<OwnedFd>,
    /// With a terminal instead of the three above: both ways. An attach has its output in `stdout` and its input
    /// in `stdin` also then.
    pub terminal: Option<OwnedFd>,
    /// Resolves when the process has ended (exec) or the container has (attach: `None` when it was detached).
    pub exit: Pin<Box<dyn Future<Output = Option<ExitStatus>> + Send>>,
    /// Resizes the terminal; does nothing without one.
    pub resize: Box<dyn Fn(TerminalSize) + Send + Sync>,
}

/// Boxed answer of a [`Sessions`] call.
pub type SessionFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionError>> + Send + 'a>>;

/// The domain as the streaming server sees it.
pub trait Sessions: Send + Sync + 'static {
    /// Starts a command in a container.
    fn exec(&self, request: ExecRequest) -> SessionFuture<'_, Session>;
    /// Joins a container's streams.
    fn attach(&self, request: AttachRequest) -> SessionFuture<'_, Session>;
    /// A TCP connection to a port of a pod, made inside its network namespace.
    fn port_forward(&self, pod_id: String, port: u16) -> SessionFuture<'_, OwnedFd>;
}
