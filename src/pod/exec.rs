//! A command in a running container: its process, its pipes, its end. ExecSync, and what sessions share with it.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use crate::executor::client::{Stdio, Supervisor};
use crate::pod::ExecOutput;
use crate::pod::context;
use crate::pod::error::{PodError, PodErrorKind};
use crate::pod::queue::Phase;
use crate::pod::table::PodSlot;
use crate::pod::view::{ContainerView, PodView};
use crate::proto::supervisor as wire;
use crate::proto::supervisor::request::Op;
use crate::sys::crash::Point;
use crate::sys::random;

/// Both outputs together: one gRPC answer of 16 MiB holds them with its own bytes.
const OUTPUT_LIMIT_BYTES: usize = (16 << 20) - 4096;
/// One read.
const CHUNK_BYTES: usize = 64 << 10;
/// How long what a process had written may take to be read after its end, when a child keeps the pipe.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);
/// How long a killed command may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Digits of an exec's id.
const EXEC_ID_BYTES: usize = 8;

/// A command that was asked for. Dropped before its end, it is killed.
pub(crate) struct Running {
    supervisor: Supervisor,
    slot: Arc<PodSlot>,
    pub(crate) id: String,
    exit: oneshot::Receiver<wire::ExecExit>,
    over: bool,
}

/// Where a command is to run.
pub(crate) struct Place {
    pub(crate) slot: Arc<PodSlot>,
    pub(crate) supervisor: Supervisor,
    pub(crate) container: Arc<ContainerView>,
}

fn does_not_run(container: &ContainerView) -> PodError {
    PodError::precondition(format!("the container {} does not run", container.record.id.short()))
}

impl Place {
    /// A running container of a pod that is there.
    pub(crate) fn of(slot: Arc<PodSlot>, pod: &PodView, container: Arc<ContainerView>) -> Result<Self, PodError> {
        if container.phase != Phase::Running {
            return Err(does_not_run(&container));
        }
        Self::of_unended(slot, pod, container)
    }

    /// As [`Place::of`], also of a container that is about to start: who attaches before misses nothing.
    pub(crate) fn of_unended(
        slot: Arc<PodSlot>,
        pod: &PodView,
        container: Arc<ContainerView>,
    ) -> Result<Self, PodError> {
        let living = pod.supervisor.clone().filter(|_| container.phase != Phase::Exited);
        let supervisor = living.ok_or_else(|| does_not_run(&container))?;
        Ok(Self { slot, supervisor, container })
    }

    /// Starts the command. With a terminal its master comes back.
    pub(crate) async fn begin(
        &self,
        command: Vec<String>,
        stdio: Option<Stdio>,
    ) -> Result<(Running, Option<OwnedFd>), PodError> {
        if command.is_empty() || command.iter().any(|word| word.contains('\0')) || command[0].is_empty() {
            return Err(PodError::invalid("the command is empty or holds a NUL byte"));
        }
        let id: String = random::bytes::<EXEC_ID_BYTES>().iter().map(|b| format!("{b:02x}")).collect();
        let exit = self.slot.execs.expect(&id)?;
        let (supervisor, slot) = (self.supervisor.clone(), Arc::clone(&self.slot));
        let mut running = Running { supervisor, slot, id: id.clone(), exit, over: false };
        let request = wire::Exec {
            container_id: self.container.record.id.to_string(),
            exec_id: id,
            command,
            tty: stdio.is_none(),
            rows: 0,
            columns: 0,
        };
        match self.supervisor.exec(request, stdio).await {
            Ok((_, terminal)) => Ok((running, terminal)),
            Err(error) => {
                // Refused: there is nothing to kill. Late: there may be, and dropping kills it.
                running.over = matches!(error, crate::executor::client::ExecutorError::Refused { .. });
                Err(PodError::from(error).of(&format!("container {}", self.container.record.id.short())))
            }
        }
    }
}

impl Running {
    /// Its end; an error when the supervisor went before. Cancellation safe.
    pub(crate) async fn wait(&mut self) -> Result<wire::ExecExit, PodError> {
        let exit = (&mut self.exit).await;
        self.over = true;
        exit.map_err(|_| PodError::new(PodErrorKind::Unavailable, "the pod ended before the command did"))
    }

    /// Of its terminal.
    pub(crate) fn resize(&self, container_id: &str) -> (Supervisor, wire::ResizeTerminal) {
        let request = wire::ResizeTerminal {
            container_id: container_id.to_owned(),
            exec_id: self.id.clone(),
            rows: 0,
            columns: 0,
        };
        (self.supervisor.clone(), request)
    }

    async fn kill(&self) {
        let request = Op::SignalExec(wire::SignalExec { exec_id: self.id.clone(), signal: libc::SIGKILL });
        if let Err(error) = self.supervisor.call(request).await {
            tracing::debug!(exec = self.id, %error, "a command could not be killed");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.slot.execs.forget(&self.id);
        if !self.over
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let request = Op::SignalExec(wire::SignalExec { exec_id: self.id.clone(), signal: libc::SIGKILL });
            let supervisor = self.supervisor.clone();
            runtime.spawn(async move { supervisor.call(request).await });
        }
    }
}

/// A pipe, both ends close-on-exec.
pub(crate) fn new_pipe() -> Result<(OwnedFd, OwnedFd), PodError> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|e| PodError::io("make a pipe", &e.into()))
}

/// For a stream that nobody wants.
pub(crate) fn null(write: bool) -> Result<OwnedFd, PodError> {
    let file = std::fs::OpenOptions::new().read(!write).write(write).open("/dev/null");
    file.map(OwnedFd::from).map_err(|e| PodError::io("open /dev/null", &e))
}

/// Runs a command to its end and brings back what it wrote; past `limit` it is dead.
pub(crate) async fn exec_sync(
    place: Place,
    command: Vec<String>,
    limit: Option<Duration>,
) -> Result<ExecOutput, PodError> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let ((stdout, to_stdout), (stderr, to_stderr)) = (new_pipe()?, new_pipe()?);
    let stdio = Stdio { stdin: null(false)?, stdout: to_stdout, stderr: to_stderr };
    let mut output = Output::new(stdout, stderr).map_err(|e| PodError::io("read from a pipe", &e))?;
    let (mut running, _) = place.begin(command, Some(stdio)).await?;
    context::pass(Point::ExecBegun).await?;
    let exit = {
        let work = output.until(running.wait());
        tokio::pin!(work);
        tokio::select! {
            exit = &mut work => Some(exit?),
            () = at(deadline) => None,
        }
    };
    let Some(exit) = exit else {
        running.kill().await;
        let gone = timeout(KILL_DEADLINE, running.wait()).await;
        let state = if gone.is_ok() { "it was killed" } else { "it could not be killed yet" };
        let whom = place.container.record.id.short();
        let message =
            format!("the command in container {whom} ran longer than {:?}: {state}", limit.unwrap_or_default());
        return Err(PodError::new(PodErrorKind::DeadlineExceeded, message));
    };
    output.drain().await;
    Ok(ExecOutput { stdout: output.stdout.bytes, stderr: output.stderr.bytes, exit_code: exit.exit_code })
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What was read of one stream.
struct Stream {
    pipe: Option<pipe::Receiver>,
    bytes: Vec<u8>,
}

/// Both streams. What is beyond the limit is read and dropped, so that the command goes on as if it were kept.
struct Output {
    stdout: Stream,
    stderr: Stream,
}

impl Output {
    fn new(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        let stream =
            |fd| Ok::<_, io::Error>(Stream { pipe: Some(pipe::Receiver::from_owned_fd(fd)?), bytes: Vec::new() });
        Ok(Self { stdout: stream(stdout)?, stderr: stream(stderr)? })
    }

    /// Reads until `end` is ready.
    async fn until<T>(&mut self, end: impl Future<Output = T>) -> T {
        tokio::pin!(end);
        loop {
            let room = self.room();
            tokio::select! {
                biased;
                read = read(&mut self.stdout.pipe) => self.stdout.keep(read, room),
                read = read(&mut self.stderr.pipe) => self.stderr.keep(read, room),
                done = &mut end => return done,
            }
        }
    }

    fn room(&self) -> usize {
        OUTPUT_LIMIT_BYTES.saturating_sub(self.stdout.bytes.len() + self.stderr.bytes.len())
    }

    /// What the command had written before its end is in the pipes: it is read without waiting for a child that
    /// holds them open.
    async fn drain(&mut self) {
        let until = Instant::now() + DRAIN_DEADLINE;
        for which in [true, false] {
            while Instant::now() < until {
                let room = self.room();
                let stream = if which { &mut self.stdout } else { &mut self.stderr };
                let Some(pipe) = &stream.pipe else { break };
                let mut chunk = vec![0; CHUNK_BYTES];
                // Past tokio, which would first wait to be told that there is something.
                match rustix::io::read(pipe, &mut chunk) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => {
                        chunk.truncate(count);
                        stream.keep(Ok(chunk), room);
                    }
                }
            }
        }
    }
}

impl Stream {
    fn keep(&mut self, read: io::Result<Vec<u8>>, room: usize) {
        match read {
            Ok(chunk) if !chunk.is_empty() => self.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]),
            _ => self.pipe = None,
        }
    }
}

async fn read(pipe: &mut Option<pipe::Receiver>) -> io::Result<Vec<u8>> {
    let Some(pipe) = pipe else { return std::future::pending().await };
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    pipe.read_buf(&mut chunk).await?;
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    #[test]
    fn what_was_written_before_the_end_is_kept_though_the_pipe_stays_open() {
        runtime().block_on(async {
            let ((stdout, to_stdout), (stderr, to_stderr)) = (new_pipe().expect("a pipe"), new_pipe().expect("a pipe"));
            let mut output = Output::new(stdout, stderr).expect("pipes");
            let mut held_open = std::fs::File::from(to_stdout);
            held_open.write_all(b"before").expect("written");
            drop(to_stderr);
            output.until(std::future::ready(())).await;
            output.drain().await;
            assert_eq!(output.stdout.bytes, b"before");
        });
    }

    #[test]
    fn a_flood_is_read_to_its_end_but_kept_to_the_limit() {
        runtime().block_on(async {
            let ((stdout, to_stdout), (stderr, to_stderr)) = (new_pipe().expect("a pipe"), new_pipe().expect("a pipe"));
            let mut output = Output::new(stdout, stderr).expect("pipes");
            drop(to_stderr);
            let writer = tokio::task::spawn_blocking(move || {
                let mut file = std::fs::File::from(to_stdout);
                let block = vec![b'y'; 1 << 20];
                (0..20).for_each(|_| file.write_all(&block).expect("written"));
            });
            output.until(writer).await.expect("all of it was written");
            output.drain().await;
            assert_eq!(output.stdout.bytes.len(), OUTPUT_LIMIT_BYTES);
        });
    }
}
