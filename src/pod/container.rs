//! The life of a container once it is made: started, stopped, removed. Each function is one piece of work of the pod's
//! task.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::executor::client::{ExecutorError, Supervisor};
use crate::pod::context::{Context, blocking, pass};
use crate::pod::error::{PodError, PodErrorKind};
use crate::pod::record::ContainerRecord;
use crate::pod::{events, paths, volumes};
use crate::proto::supervisor as wire;
use crate::proto::supervisor::request::Op;
use crate::sys::crash::Point;

/// How long a process may take to be gone after SIGKILL: it may hang in a dead file system.
pub(crate) const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Lets the created process run; answers since when it does, in nanoseconds since 1970.
pub(crate) async fn start(supervisor: Supervisor, record: Arc<ContainerRecord>) -> Result<i64, PodError> {
    let at = match supervisor.start(record.id.to_string()).await {
        Ok(0) => events::now(),
        Ok(at) => at,
        Err(error) => {
            let refused = matches!(&error, ExecutorError::Refused { kind: wire::ErrorKind::FailedPrecondition, .. });
            let since = if refused { running_since(&supervisor, &record).await } else { None };
            since.ok_or(error)?
        }
    };
    pass(Point::ContainerStarted).await?;
    Ok(at)
}

/// Where it was started before, by a call whose answer was lost on the way.
async fn running_since(supervisor: &Supervisor, record: &ContainerRecord) -> Option<i64> {
    let state = supervisor.state_of(record.id.as_str()).await.ok()??;
    (state.phase() == wire::ContainerPhase::Running).then_some(state.started_at)
}

/// The stop signal; SIGKILL to all of it when `deadline`, which may be moved, has passed.
pub(crate) async fn stop(
    supervisor: Supervisor,
    record: Arc<ContainerRecord>,
    mut deadline: watch::Receiver<Instant>,
    ended: watch::Receiver<bool>,
) -> Result<(), PodError> {
    if *deadline.borrow() > Instant::now() {
        signal(&supervisor, &record, record.stop_signal, false).await?;
        pass(Point::StopSignalled).await?;
        let mut over = ended.clone();
        loop {
            let until = *deadline.borrow_and_update();
            tokio::select! {
                _ = over.wait_for(|ended| *ended) => break,
                () = sleep_until(until) => break,
                changed = deadline.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
            }
        }
    }
    let over = *ended.borrow();
    if !over {
        kill(&supervisor, &record, ended).await?;
    }
    pass(Point::ContainerStopped).await
}

/// SIGKILL to every process of the container, and the wait for its end.
async fn kill(
    supervisor: &Supervisor,
    record: &ContainerRecord,
    mut ended: watch::Receiver<bool>,
) -> Result<(), PodError> {
    signal(supervisor, record, libc::SIGKILL, true).await?;
    match timeout(KILL_DEADLINE, ended.wait_for(|ended| *ended)).await {
        Ok(_) => Ok(()),
        Err(_) => {
            let message = format!("it is still there {KILL_DEADLINE:?} after SIGKILL: try again");
            Err(PodError::new(PodErrorKind::DeadlineExceeded, message))
        }
    }
}

async fn signal(supervisor: &Supervisor, record: &ContainerRecord, signal: i32, all: bool) -> Result<(), PodError> {
    let request = wire::SignalContainer { container_id: record.id.to_string(), signal, all };
    gone_is_fine(supervisor.call(Op::SignalContainer(request)).await)
}

/// What is not there any more is as stopped and removed as can be.
fn gone_is_fine(result: Result<(), ExecutorError>) -> Result<(), PodError> {
    match result {
        Ok(()) | Err(ExecutorError::Gone) => Ok(()),
        Err(ExecutorError::Refused { kind: wire::ErrorKind::NotFound, .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Kills it if need be, and removes every trace of it; the record goes last.
pub(crate) async fn remove(
    context: Arc<Context>,
    supervisor: Option<Supervisor>,
    record: Arc<ContainerRecord>,
    ended: watch::Receiver<bool>,
) -> Result<(), PodError> {
    if let Some(supervisor) = &supervisor {
        let over = *ended.borrow();
        if !over {
            kill(supervisor, &record, ended).await?;
        }
        let container_id = record.id.to_string();
        let request = Op::RemoveContainer(wire::RemoveContainer { container_id });
        gone_is_fine(supervisor.call(request).await)?;
    }
    pass(Point::ContainerForgotten).await?;
    for snapshot in volumes::snapshots(&record.id, &record.config) {
        context.images.remove_snapshot(&snapshot).await?;
    }
    pass(Point::ContainerUnsnapshot).await?;
    let bundle = context.layout.bundle(&record.pod, &record.id);
    let disk = context.layout.container(&record.pod, &record.id);
    blocking(move || paths::remove_tree(&bundle).and_then(|()| paths::remove_tree(&disk))).await?;
    pass(Point::ContainerRemoved).await
}
