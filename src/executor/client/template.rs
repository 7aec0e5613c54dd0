//! The template: a process of our binary, single-threaded from its start, from which supervisors are forked.
//!
//! It is the daemon's child and ends when its socket closes; the supervisors are nobody's children and stay.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::connection::{Arrival, Connection, Incoming};
use super::{ExecutorError, Supervisor, io, refused};
use crate::executor::protocol::{self, SUPERVISOR_SOCKET, TEMPLATE_SOCKET};
use crate::proto::supervisor as wire;
use crate::sys::spawn::join_and_pass;

/// For forking a supervisor and making its namespaces, with many others doing the same.
const SPAWN_DEADLINE: Duration = Duration::from_secs(20);
/// How often a spawn is tried when the template dies under it.
const SPAWN_ATTEMPTS: usize = 2;

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
pub struct Template {
    options: Arc<TemplateOptions>,
    running: Arc<Mutex<Option<Arc<Link>>>>,
}

type Link = Connection<wire::SpawnReply>;

impl Incoming for wire::SpawnReply {
    type Reply = Self;

    fn sort(self) -> Arrival<Self> {
        Arrival::Reply(self.id, self)
    }
}

impl Template {
    /// Starts the template. It is started again when it is found dead.
    pub async fn start(options: TemplateOptions) -> Result<Self, ExecutorError> {
        let template = Self { options: Arc::new(options), running: Arc::default() };
        template.link()?;
        Ok(template)
    }

    /// Forks a supervisor and connects to it. Not cancellation safe: run it in a task that is not dropped.
    pub async fn spawn(&self, sandbox: wire::SandboxSpec) -> Result<Supervisor, ExecutorError> {
        let state_dir = PathBuf::from(&sandbox.state_dir);
        let result = self.spawn_at(&state_dir, sandbox).await;
        if result.is_err() {
            // A socket that nobody listens at; also when there never was one.
            let _ = std::fs::remove_file(state_dir.join(SUPERVISOR_SOCKET));
        }
        result
    }

    async fn spawn_at(&self, state_dir: &Path, sandbox: wire::SandboxSpec) -> Result<Supervisor, ExecutorError> {
        for _ in 0..SPAWN_ATTEMPTS {
            match self.fork(state_dir, sandbox.clone()).await {
                Ok(()) => return Ok(Supervisor::connect(state_dir).await?.0),
                // The template died; whether before or after it forked is not known.
                Err(ExecutorError::Gone) => match Supervisor::connect(state_dir).await {
                    Err(ExecutorError::Gone) => {}
                    found => return Ok(found?.0),
                },
                Err(error) => return Err(error),
            }
        }
        let message = "the process that starts supervisors died again; its last words are in the daemon's log";
        Err(ExecutorError::Refused { kind: wire::ErrorKind::Internal, message: message.to_owned() })
    }

    async fn fork(&self, state_dir: &Path, sandbox: wire::SandboxSpec) -> Result<(), ExecutorError> {
        let action = format!("listening at {}", state_dir.join(SUPERVISOR_SOCKET).display());
        let listener = protocol::listen(state_dir, SUPERVISOR_SOCKET).map_err(io(&action))?;
        let link = self.link()?;
        let id = link.next_id();
        let request = wire::SpawnRequest { id, sandbox: Some(sandbox) };
        let reply = link.exchange(id, &request, vec![listener], SPAWN_DEADLINE).await;
        if matches!(reply, Err(ExecutorError::Timeout(_))) {
            // Stuck. Without us it ends, and the next spawn starts another.
            self.forget(&link);
        }
        reply?.message.error.map_or(Ok(()), |error| Err(refused(error)))
    }

    /// The connection to the template, which is started when there is none.
    fn link(&self) -> Result<Arc<Link>, ExecutorError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = running.as_ref().filter(|link| !link.is_closed()) {
            return Ok(link.clone());
        }
        if running.is_some() {
            tracing::warn!("the process that starts supervisors is gone; starting another");
        }
        let link = start_process(&self.options).map_err(io("starting `cricket supervise`"))?;
        Ok(running.insert(link).clone())
    }

    fn forget(&self, link: &Arc<Link>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            *running = None;
        }
    }
}

fn start_process(options: &TemplateOptions) -> std::io::Result<Arc<Link>> {
    let (ours, theirs) = protocol::pair()?;
    let mut command = std::process::Command::new(&options.executable);
    // Nothing of our environment: what reads it (a loader, a library) shall find nothing there.
    command.arg("supervise").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.envs(crate::sys::crash::inherited());
    join_and_pass(&mut command, &options.namespaces, theirs.as_fd(), TEMPLATE_SOCKET)?;
    let mut child = tokio::process::Command::from(command).spawn()?;
    tokio::spawn(async move {
        match child.wait().await {
            Ok(status) => tracing::debug!(%status, "the process that starts supervisors ended"),
            Err(error) => tracing::warn!(%error, "cannot wait for the process that starts supervisors"),
        }
    });
    Connection::open(ours, None)
}
