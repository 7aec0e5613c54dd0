//! How the daemon is asked to end, and what it tells systemd.

use std::io;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT and SIGHUP, from when it is made: they end nothing by themselves any more.
pub struct Requests {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Requests {
    /// Called inside the tokio runtime.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves at the first.
    pub async fn one(mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hang_up.recv() => "SIGHUP",
        };
        tracing::info!("{name}: stopping");
    }
}

/// Type=notify units wait for this.
pub fn tell_ready() {
    tell(&[NotifyState::Ready]);
}

/// So that systemd does not take the end for a crash.
pub fn tell_stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Where the unit has a watchdog, tells it from a task: a daemon whose tasks do not run any more is started anew. Its
/// pods do not notice.
pub fn feed_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else { return };
    tokio::spawn(async move {
        // As sd_watchdog_enabled(3) advises.
        let mut pause = tokio::time::interval(limit / 2);
        loop {
            pause.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    });
}

fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd was not told: {error}");
    }
}
