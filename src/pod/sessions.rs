//! Sessions for the streaming server: exec, attach and port-forward, as descriptors. Their bytes do not pass through
//! here, but for the input of a container that is to be closed after its first session (`stdin_once`).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::executor::client::{Stdio, Supervisor};
use crate::pod::Pods;
use crate::pod::error::{PodError, PodErrorKind};
use crate::pod::exec::{Place, new_pipe, null};
use crate::pod::session::{
    AttachRequest, ExecRequest, ExitStatus, Session, SessionError, SessionFuture, Sessions, TerminalSize,
};
use crate::proto::supervisor as wire;
use crate::proto::supervisor::request::Op;

impl From<PodError> for SessionError {
    fn from(error: PodError) -> Self {
        Self { not_found: error.kind == PodErrorKind::NotFound, message: error.message }
    }
}

impl Sessions for Pods {
    fn exec(&self, request: ExecRequest) -> SessionFuture<'_, Session> {
        Box::pin(async move { Ok(exec(self.place(&request.container_id)?, request).await?) })
    }

    fn attach(&self, request: AttachRequest) -> SessionFuture<'_, Session> {
        Box::pin(async move { Ok(attach(self.unended(&request.container_id)?, &request).await?) })
    }

    fn port_forward(&self, pod_id: String, port: u16) -> SessionFuture<'_, OwnedFd> {
        Box::pin(async move {
            let (_, view) = self.pod(&pod_id)?;
            let gone = || PodError::precondition(format!("the pod {} is not ready", view.record.id.short()));
            let supervisor = view.supervisor.clone().ok_or_else(gone)?;
            Ok(supervisor.connect_port(port).await.map_err(PodError::from)?)
        })
    }
}

/// The client's end and the process's end of a stream; for one that is not wanted, none and /dev/null.
fn stream(wanted: bool, client_reads: bool) -> Result<(Option<OwnedFd>, OwnedFd), PodError> {
    if !wanted {
        return Ok((None, null(client_reads)?));
    }
    let (read, write) = new_pipe()?;
    Ok(if client_reads { (Some(read), write) } else { (Some(write), read) })
}

async fn exec(place: Place, request: ExecRequest) -> Result<Session, PodError> {
    let (mut stdin, mut stdout, mut stderr, mut stdio) = (None, None, None, None);
    if !request.tty {
        let (input, output, errors) =
            (stream(request.stdin, false)?, stream(request.stdout, true)?, stream(request.stderr, true)?);
        (stdin, stdout, stderr) = (input.0, output.0, errors.0);
        stdio = Some(Stdio { stdin: input.1, stdout: output.1, stderr: errors.1 });
    }
    let (mut running, terminal) = place.begin(request.command, stdio).await?;
    let (supervisor, wish) = running.resize(place.container.record.id.as_str());
    let exit = Box::pin(async move { running.wait().await.ok().map(|exit| ExitStatus { code: exit.exit_code }) });
    Ok(Session { stdin, stdout, stderr, terminal, exit, resize: resizer(supervisor, wish, request.tty) })
}

/// Sizes go to one task, which sends the last one; it ends with the session.
fn resizer(
    supervisor: Supervisor,
    wish: wire::ResizeTerminal,
    terminal: bool,
) -> Box<dyn Fn(TerminalSize) + Send + Sync> {
    if !terminal {
        return Box::new(|_| {});
    }
    let (sender, mut receiver) = watch::channel(TerminalSize { width: 0, height: 0 });
    tokio::spawn(async move {
        while receiver.changed().await.is_ok() {
            let size = *receiver.borrow_and_update();
            let request = wire::ResizeTerminal { rows: size.height.into(), columns: size.width.into(), ..wish.clone() };
            if let Err(error) = supervisor.call(Op::ResizeTerminal(request)).await {
                tracing::debug!(%error, "a terminal was not resized");
            }
        }
    });
    Box::new(move |size| {
        let _ = sender.send(size);
    })
}

async fn attach(place: Place, request: &AttachRequest) -> Result<Session, PodError> {
    let record = &place.container.record;
    let (id, config) = (record.id.to_string(), &record.config);
    if request.tty != config.tty {
        let has = if config.tty { "has a terminal" } else { "has no terminal" };
        return Err(PodError::invalid(format!("the container {} {has}: attach to it the same way", record.id.short())));
    }
    let wants_errors = request.stderr && !config.tty;
    let (stdout, to_stdout) = optional_pipe(request.stdout)?;
    let (stderr, to_stderr) = optional_pipe(wants_errors)?;
    let wish = wire::Attach {
        container_id: id.clone(),
        stdin: request.stdin && config.stdin,
        stdout: request.stdout,
        stderr: wants_errors,
    };
    let mut stdin = place.supervisor.attach(wish, to_stdout, to_stderr).await?;
    if let Some(input) = stdin.take() {
        let once = config.stdin_once && !config.tty;
        stdin = Some(if once { closing_input(input, place.supervisor.clone(), id.clone())? } else { input });
    }
    let (slot, container) = (Arc::clone(&place.slot), record.id.clone());
    let exit = Box::pin(async move { slot.exit_code(&container).await.map(|code| ExitStatus { code }) });
    let size = wire::ResizeTerminal { container_id: id, ..Default::default() };
    let resize = resizer(place.supervisor.clone(), size, config.tty);
    Ok(Session { stdin, stdout, stderr, terminal: None, exit, resize })
}

fn optional_pipe(wanted: bool) -> Result<(Option<OwnedFd>, Option<OwnedFd>), PodError> {
    if !wanted {
        return Ok((None, None));
    }
    let (read, write) = new_pipe()?;
    Ok((Some(read), Some(write)))
}

/// A pipe in front of the container's input: its end of file is passed on by closing the supervisor's own end, too.
fn closing_input(input: OwnedFd, supervisor: Supervisor, container_id: String) -> Result<OwnedFd, PodError> {
    let (read, write) = new_pipe()?;
    let failed = |e| PodError::io("pass input on", &e);
    let mut from = pipe::Receiver::from_owned_fd(read).map_err(failed)?;
    let mut to = pipe::Sender::from_owned_fd(input).map_err(failed)?;
    tokio::spawn(async move {
        // An error is the container's end, which closes the input as well.
        let _ = tokio::io::copy(&mut from, &mut to).await;
        drop(to);
        if let Err(error) = supervisor.call(Op::CloseStdin(wire::CloseStdin { container_id })).await {
            tracing::debug!(%error, "an input was not closed");
        }
    });
    Ok(write)
}
