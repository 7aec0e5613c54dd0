//! The way out of a node that cricket made: pasta, else slirp4netns, carries packets between the node's network
//! namespace and the host's network, without privileges.
//!
//! The driver is run by a process of its own, `cricket way-out` ([`keeper`]), which starts it again when it dies and
//! outlives the daemon: so connections go on over a restart, and the way out comes back without a daemon too. Their
//! record, `STATE/outbound.json`, lets the next daemon find them; one task of the daemon watches both.
//! Nothing of the host's loopback is reachable through a driver, and it forwards no port by itself.
//!
//! pasta reads the host's resolv.conf once. When another resolver at a loopback address stands there, which pods reach
//! only through the driver, it is started anew ([`Outbound::follow_resolver`]); slirp4netns reads the file anew itself.

mod driver;
pub mod keeper;
mod record;
mod resolvers;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

pub use driver::{Driver, MTU, Resolvers};
use record::Record;
use resolvers::{HostResolvers, host_resolvers};

use crate::store::{self, RecordError};
use crate::sys::async_fd;
use crate::sys::namespace::inode;
use crate::sys::process::{ProcessId, by_command_line, end_all};

/// For a driver that is asked to end, before it is killed; its keeper has twice that.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// For a keeper to start its driver.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How often a record that is about to be written is looked for.
const GLANCE: Duration = Duration::from_millis(5);

/// The same after a driver's end, which is no hurry.
const GLANCE_AFTER_END: Duration = Duration::from_millis(250);

/// Before a keeper that ended is started again.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// What `ps` and the kernel's messages call a keeper.
pub const NAME: &std::ffi::CStr = c"cricket-way-out";

/// By which this program is one.
const COMMAND: &str = "way-out";

/// What the driver and its keeper say, below STATE.
const LOG: &str = "outbound.log";

/// Most of it that is repeated in an error.
const LOG_LIMIT_CHARS: usize = 300;

/// Why there is no way out.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// Neither driver is there.
    #[error(
        "pods reach only each other: neither pasta nor slirp4netns is installed (Debian, Ubuntu: apt install passt)"
    )]
    NotInstalled,
    /// The driver cannot be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The driver's program.
        program: &'static str,
        /// What the kernel, or the driver, said.
        source: io::Error,
    },
    /// Not a namespace.
    #[error("cannot look at the node's network namespace: {0}")]
    Namespace(#[source] io::Error),
    /// Which one runs cannot be read, or a later release started it; it goes on.
    #[error("the way out is left as it is: {0}")]
    Record(#[from] RecordError),
    /// It belongs to a node that is gone.
    #[error("cannot end the way out of an earlier node: {0}")]
    Leftover(#[source] io::Error),
}

/// How a way out is started.
#[derive(Debug)]
pub struct OutboundOptions {
    /// The state directory.
    pub state: PathBuf,
    /// By which a child of ours executes this program.
    pub executable: PathBuf,
    /// The node's network namespace.
    pub network: OwnedFd,
    /// `None`: the first that is installed.
    pub driver: Option<Driver>,
    /// Whether the host's loopback addresses are reached through it.
    pub host_loopback: bool,
}

/// Watches the driver; dropping it leaves the driver running.
#[derive(Debug)]
pub struct Outbound {
    driver: Driver,
    resolver_changes: Arc<Notify>,
    watch: JoinHandle<()>,
}

impl Drop for Outbound {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Outbound {
    /// Finds the driver that runs, or starts one. The caller is in the host's network namespace and in the user
    /// namespace that owns the node's. One that runs is replaced when it was not started for the same `host_loopback`.
    pub async fn ensure(options: OutboundOptions) -> Result<Self, OutboundError> {
        let served = inode(&options.network).map_err(OutboundError::Namespace)?;
        let found = find(&options.state)
            .await?
            .filter(|record| record.network == served && record.host_loopback == options.host_loopback)
            .filter(|record| !record.asks_elsewhere(host_resolvers()));
        let record = match found {
            Some(record) => record,
            None => {
                Self::stop(&options.state).map_err(OutboundError::Leftover)?;
                let driver = options.driver.or_else(Driver::installed).ok_or(OutboundError::NotInstalled)?;
                let started = start(driver, &options).await;
                started.map_err(|source| OutboundError::Start { program: driver.program(), source })?
            }
        };
        let driver = record.driver;
        let resolver_changes = Arc::new(Notify::new());
        let watched = Watched { driver, options, changes: resolver_changes.clone() };
        let watch = tokio::spawn(async move { watched.watch(record).await });
        Ok(Self { driver, resolver_changes, watch })
    }

    /// To be called when the host's resolv.conf has changed, from any thread. Connections through a driver that must be
    /// started anew are lost.
    pub fn follow_resolver(&self) {
        self.resolver_changes.notify_one();
    }

    /// Which driver it is.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The processes of `state`'s way out that run.
    pub fn running(state: &Path) -> Vec<ProcessId> {
        let record = record::read(state).ok().flatten();
        keepers(state).into_iter().chain(record.map(|record| record.process)).filter(ProcessId::is_alive).collect()
    }

    /// Ends what is recorded under `state`, if it runs, and waits until it has ended. For `cricket stop`; a daemon would
    /// start it again.
    pub fn stop(state: &Path) -> io::Result<()> {
        let record = record::read(state).map_err(io::Error::other)?;
        // They first, for they would start another.
        end_all(&keepers(state), STOP_PATIENCE * 2)?;
        if let Some(record) = record {
            record.process.end(STOP_PATIENCE)?;
        }
        store::remove(&record::path(state)).map_err(io::Error::other)
    }
}

/// Keepers of this state's, by their command lines: where no record names one.
fn keepers(state: &Path) -> Vec<ProcessId> {
    let is_keeper =
        |words: &[&OsStr]| words.get(1).is_some_and(|w| *w == COMMAND) && words.contains(&state.as_os_str());
    let found = by_command_line(|words| is_keeper(words).then_some(())).unwrap_or_default();
    found.into_iter().map(|(process, ())| process).collect()
}

/// What runs. A keeper whose record was damaged or lost writes it anew.
async fn find(state: &Path) -> Result<Option<Record>, OutboundError> {
    let known = record::read(state)?.filter(Record::is_alive);
    let Some(keeper) = keepers(state).pop().filter(|_| known.is_none()) else { return Ok(known) };
    if let Ok(Some(descriptor)) = keeper.open() {
        // A keeper that ends just now has no record to write.
        let _ = pidfd_send_signal(descriptor, Signal::HUP);
    }
    let deadline = Instant::now() + START_PATIENCE;
    while keeper.is_alive() && Instant::now() < deadline {
        if let Some(record) = record::read(state)? {
            tracing::info!(pid = record.process.pid, "the way out of the node is found again");
            return Ok(Some(record));
        }
        tokio::time::sleep(GLANCE).await;
    }
    Ok(None)
}

/// A keeper, and then its driver.
async fn start(driver: Driver, options: &OutboundOptions) -> io::Result<Record> {
    let path = options.state.join(LOG);
    let log = File::create(&path)?;
    let mut command = Command::new(&options.executable);
    command.arg(COMMAND).arg("--driver").arg(driver.program()).arg("--directory").arg(&options.state);
    command.args(options.host_loopback.then_some("--host-loopback"));
    command.stdin(Stdio::from(options.network.try_clone()?)).stdout(log.try_clone()?).stderr(log).process_group(0);
    let mut keeper = command.spawn()?;
    let deadline = Instant::now() + START_PATIENCE;
    let record = loop {
        let written = record::read(&options.state).map_err(io::Error::other)?;
        let of_this = |record: &Record| record.keeper.is_some_and(|process| process.pid == keeper.id() as i32);
        if let Some(record) = written.filter(of_this) {
            break record;
        }
        if keeper.try_wait()?.is_some() {
            let said = std::fs::read_to_string(&path).unwrap_or_default();
            return Err(io::Error::other(said.trim().chars().take(LOG_LIMIT_CHARS).collect::<String>()));
        }
        if Instant::now() >= deadline {
            let _ = keeper.kill().and_then(|()| keeper.wait());
            return Err(io::ErrorKind::TimedOut.into());
        }
        tokio::time::sleep(GLANCE).await;
    };
    // Its end is noticed by the watch; the kernel wants somebody to ask for its status, too.
    std::thread::Builder::new()
        .name("way-out".to_owned())
        .stack_size(REAPER_STACK_BYTES)
        .spawn(move || reap(keeper))?;
    Ok(record)
}

/// The thread does nothing that needs more.
const REAPER_STACK_BYTES: usize = 128 << 10;

fn reap(mut child: Child) {
    let _ = child.wait();
}

/// A driver, and how another takes its place.
#[derive(Debug)]
struct Watched {
    driver: Driver,
    options: OutboundOptions,
    changes: Arc<Notify>,
}

impl Watched {
    async fn watch(&self, mut record: Record) {
        let driver = self.driver.program();
        loop {
            let wanted = self.ended(&record).await;
            let why =
                if wanted { "is started anew: the host has another resolver" } else { "has died and is started again" };
            tracing::warn!(driver, "the way out {why}; connections through it are lost");
            record = self.next(&record).await;
        }
    }

    /// The driver that takes the place of `old`: its keeper starts it, and where there is none another keeper.
    async fn next(&self, old: &Record) -> Record {
        let state = &self.options.state;
        loop {
            match record::read(state) {
                Ok(Some(record)) if record.process != old.process => return record,
                _ => {}
            }
            if old.keeper.is_some_and(|keeper| keeper.is_alive()) {
                tokio::time::sleep(GLANCE_AFTER_END).await;
                continue;
            }
            match start(self.driver, &self.options).await {
                Ok(record) => return record,
                Err(error) => tracing::warn!(%error, driver = self.driver.program(), "the way out cannot be started"),
            }
            tokio::time::sleep(RESTART_DELAY).await;
        }
    }

    /// Waits for the driver's end. True: it was asked to end, because the host has another resolver.
    async fn ended(&self, record: &Record) -> bool {
        let Ok(Some(driver)) = record.process.open() else { return false };
        let Ok(driver) = async_fd::register(driver, Interest::READABLE) else { return false };
        let mut wanted = false;
        loop {
            tokio::select! {
                _ = driver.readable() => return wanted,
                () = self.changes.notified(), if !wanted => {
                    wanted = record.asks_elsewhere(host_resolvers())
                        && pidfd_send_signal(driver.get_ref(), Signal::TERM).is_ok();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_driver_forwards_ports_or_shows_the_hosts_loopback() {
        let pasta = Driver::Pasta.arguments(false).join(" ");
        assert!(pasta.contains("--no-map-gw") && pasta.contains("--tcp-ns none") && pasta.contains("--udp-ns none"));
        assert!(Driver::Slirp4netns.arguments(false).contains(&"--disable-host-loopback".to_owned()));
    }
}
