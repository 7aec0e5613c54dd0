//! The daemon's side: the template that forks supervisors, and a connection to each supervisor.
//!
//! Every call has a deadline; a supervisor that is gone answers [`ExecutorError::Gone`] to everything. Descriptors that
//! are handed over are closed here as soon as they were sent. Events wait for their reader in order and none is lost
//! while the connection lives; what happened before a connection is in its `HelloReply`.

mod connection;
mod events;
mod template;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::executor::protocol::{self, PROTOCOL_VERSION, ProtocolError, Received, SUPERVISOR_SOCKET};
use crate::proto::supervisor as wire;
use connection::{Arrival, Connection, Incoming};
use wire::reply::Result as Answer;
use wire::request::Op;

pub use template::{Template, TemplateOptions};

/// For the first exchange on a connection, and for a place in the listener's queue.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long a full queue of the listener is left alone before it is tried again.
const QUEUE_PAUSE: Duration = Duration::from_millis(20);
/// Beyond the watchdog that the request itself sets.
const CREATE_MARGIN: Duration = Duration::from_secs(5);
/// For starting a process, in a container or as one.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// For unmounting and forgetting a container.
const REMOVE_DEADLINE: Duration = Duration::from_secs(60);
/// Beyond the grace that the request itself gives.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(30);
/// For what the supervisor does without waiting for anybody.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

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

/// A connection to one pod's supervisor. Cheap to clone; requests may be under way side by side. Dropping a call's
/// future forgets the answer, not the work. The connection closes with the last clone.
#[derive(Debug, Clone)]
pub struct Supervisor {
    connection: Arc<Connection<wire::FromSupervisor>>,
    events: Arc<Mutex<Option<mpsc::Receiver<wire::Event>>>>,
    pid: i32,
}

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

impl Incoming for wire::FromSupervisor {
    type Reply = Option<Answer>;

    fn sort(self) -> Arrival<Self::Reply> {
        match self.message {
            Some(wire::from_supervisor::Message::Reply(reply)) => Arrival::Reply(reply.id, reply.result),
            Some(wire::from_supervisor::Message::Event(event)) => Arrival::Event(event),
            None => Arrival::Unknown,
        }
    }
}

impl Supervisor {
    /// Connects to the supervisor that listens at `STATE_DIR/supervisor.sock`; `Gone` when nobody does.
    pub async fn connect(state_dir: &Path) -> Result<(Self, wire::HelloReply), ExecutorError> {
        let socket = connect_socket(state_dir).await?;
        let (sender, receiver) = events::channel();
        let connection = Connection::open(socket, Some(sender)).map_err(io("watching a supervisor's socket"))?;
        let events = Arc::new(Mutex::new(Some(receiver)));
        let mut supervisor = Self { connection, events, pid: 0 };
        let hello = supervisor.hello().await?;
        supervisor.pid = hello.pid;
        Ok((supervisor, hello))
    }

    async fn hello(&self) -> Result<wire::HelloReply, ExecutorError> {
        let op = Op::Hello(wire::Hello { version: PROTOCOL_VERSION });
        let hello = match self.request(op, Vec::new(), HELLO_DEADLINE).await?.expect::<0>() {
            Ok((Answer::Hello(hello), [])) => hello,
            other => return Err(out_of_turn(other.err())),
        };
        if protocol::is_compatible(hello.version) {
            return Ok(hello);
        }
        let message = format!(
            "the supervisor of pod {} speaks protocol {} (cricket {}), this daemon speaks {PROTOCOL_VERSION}; \
             stop the pod with the release that started it",
            hello.pod_id, hello.version, hello.release,
        );
        Err(ExecutorError::Refused { kind: wire::ErrorKind::FailedPrecondition, message })
    }

    /// How a container stands, as the supervisor knows it; none where it knows no such container.
    pub async fn state_of(&self, container_id: &str) -> Result<Option<wire::ContainerState>, ExecutorError> {
        let hello = self.hello().await?;
        Ok(hello.containers.into_iter().find(|state| state.container_id == container_id))
    }

    /// Of the supervisor, in the node's PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The events, once; the channel closes when the supervisor is gone. Somebody has to take and read them: when
    /// thousands wait, the connection stops reading.
    pub fn take_events(&self) -> Option<mpsc::Receiver<wire::Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// See the message of the same name.
    pub async fn create_container(
        &self,
        request: wire::CreateContainer,
        rootfs: OwnedFd,
        volumes: Vec<OwnedFd>,
    ) -> Result<wire::CreateContainerReply, ExecutorError> {
        let deadline = Duration::from_millis(request.timeout_ms) + CREATE_MARGIN;
        let descriptors = std::iter::once(rootfs).chain(volumes).collect();
        match self.request(Op::CreateContainer(request), descriptors, deadline).await?.expect::<0>() {
            Ok((Answer::CreateContainer(reply), [])) => Ok(reply),
            other => Err(out_of_turn(other.err())),
        }
    }

    /// Without terminal: `stdio` is given and nothing comes back. With one: its master comes back.
    pub async fn exec(
        &self,
        request: wire::Exec,
        stdio: Option<Stdio>,
    ) -> Result<(wire::ExecReply, Option<OwnedFd>), ExecutorError> {
        let tty = request.tty;
        let descriptors = stdio.map(|stdio| vec![stdio.stdin, stdio.stdout, stdio.stderr]).unwrap_or_default();
        let received = self.request(Op::Exec(request), descriptors, START_DEADLINE).await?;
        let (answer, terminal) = if tty {
            received.expect::<1>().map(|(answer, [terminal])| (answer, Some(terminal))).map_err(unfit)?
        } else {
            received.expect::<0>().map(|(answer, [])| (answer, None)).map_err(unfit)?
        };
        match answer {
            Answer::Exec(reply) => Ok((reply, terminal)),
            _ => Err(out_of_turn(None)),
        }
    }

    /// Copies output to `stdout` and `stderr` from now on; the container's stdin comes back if asked for.
    pub async fn attach(
        &self,
        request: wire::Attach,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Result<Option<OwnedFd>, ExecutorError> {
        let descriptors = stdout.into_iter().chain(stderr).collect();
        let received = self.request(Op::Attach(request), descriptors, CALL_DEADLINE).await?;
        let mut descriptors = received.descriptors.into_iter();
        match (descriptors.next(), descriptors.next()) {
            (stdin, None) => Ok(stdin),
            _ => Err(out_of_turn(None)),
        }
    }

    /// A TCP connection made inside the pod's network namespace.
    pub async fn connect_port(&self, port: u16) -> Result<OwnedFd, ExecutorError> {
        let op = Op::Connect(wire::Connect { port: u32::from(port) });
        let (_, [socket]) = self.request(op, Vec::new(), CALL_DEADLINE).await?.expect::<1>().map_err(unfit)?;
        Ok(socket)
    }

    /// The pod's own user namespace.
    pub async fn user_namespace(&self) -> Result<OwnedFd, ExecutorError> {
        let op = Op::UserNamespace(wire::UserNamespace {});
        let (_, [namespace]) = self.request(op, Vec::new(), CALL_DEADLINE).await?.expect::<1>().map_err(unfit)?;
        Ok(namespace)
    }

    /// Interface counters of the pod's network namespace.
    pub async fn network(&self) -> Result<wire::NetworkReply, ExecutorError> {
        let op = Op::Network(wire::Network {});
        match self.request(op, Vec::new(), CALL_DEADLINE).await?.expect::<0>() {
            Ok((Answer::Network(reply), [])) => Ok(reply),
            other => Err(out_of_turn(other.err())),
        }
    }

    /// Lets a created container run; answers since when it does (nanoseconds since 1970, by the supervisor's clock; 0
    /// from one of an earlier release).
    pub async fn start(&self, container_id: String) -> Result<i64, ExecutorError> {
        let op = Op::StartContainer(wire::StartContainer { container_id });
        match self.request(op, Vec::new(), START_DEADLINE).await?.expect::<0>().map_err(unfit)? {
            (Answer::Done(done), []) => Ok(done.at),
            _ => Err(out_of_turn(None)),
        }
    }

    /// Every operation that answers nothing: signal, remove, resize, reopen, close stdin, pause, shutdown.
    pub async fn call(&self, op: Op) -> Result<(), ExecutorError> {
        let deadline = deadline_of(&op);
        self.request(op, Vec::new(), deadline).await?.expect::<0>().map_err(unfit)?;
        Ok(())
    }

    /// One request and its answer; an error that the supervisor answers is `Refused`.
    async fn request(
        &self,
        op: Op,
        descriptors: Vec<OwnedFd>,
        deadline: Duration,
    ) -> Result<Received<Answer>, ExecutorError> {
        let id = self.connection.next_id();
        let request = wire::Request { id, op: Some(op) };
        let Received { message, descriptors } = self.connection.exchange(id, &request, descriptors, deadline).await?;
        match message {
            Some(Answer::Error(error)) => Err(refused(error)),
            Some(message) => Ok(Received { message, descriptors }),
            None => Err(out_of_turn(None)),
        }
    }
}

/// How long the supervisor may take for an operation that answers nothing.
fn deadline_of(op: &Op) -> Duration {
    match op {
        Op::RemoveContainer(_) => REMOVE_DEADLINE,
        Op::Shutdown(shutdown) => Duration::from_millis(shutdown.grace_ms) + SHUTDOWN_MARGIN,
        _ => CALL_DEADLINE,
    }
}

/// `Gone` when nobody listens; waits for a place in the queue of a listener that is busy.
async fn connect_socket(state_dir: &Path) -> Result<OwnedFd, ExecutorError> {
    let started = Instant::now();
    loop {
        let refused = match protocol::connect(state_dir, SUPERVISOR_SOCKET) {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
        match refused.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => return Err(ExecutorError::Gone),
            std::io::ErrorKind::WouldBlock if started.elapsed() < HELLO_DEADLINE => {
                tokio::time::sleep(QUEUE_PAUSE).await;
            }
            std::io::ErrorKind::WouldBlock => return Err(ExecutorError::Timeout(HELLO_DEADLINE)),
            _ => return Err(io("connecting to a supervisor")(refused)),
        }
    }
}

fn refused(error: wire::Error) -> ExecutorError {
    let kind = error.kind();
    ExecutorError::Refused { kind, message: error.message }
}

/// The supervisor broke the contract of proto/supervisor.proto.
fn out_of_turn(error: Option<ProtocolError>) -> ExecutorError {
    let detail = error.map(|error| format!(": {error}")).unwrap_or_default();
    let message = format!("the pod's supervisor answered with something else than was asked for{detail}");
    ExecutorError::Refused { kind: wire::ErrorKind::Internal, message }
}

fn unfit(error: ProtocolError) -> ExecutorError {
    out_of_turn(Some(error))
}

fn io(action: &str) -> impl FnOnce(std::io::Error) -> ExecutorError {
    let action = action.to_owned();
    move |source| ExecutorError::Io { action, source }
}

#[cfg(test)]
mod tests;
