//! The way out of a node that cricket made: pasta, else slirp4netns, carries packets between the node's network
//! namespace and the host's network, without privileges.
//!
//! The driver is a process of its own that outlives the daemon, so connections go on over a restart. Its record,
//! `STATE/outbound.json`, lets the next daemon find it, and what it was started with does where the record is lost; one
//! task watches it and starts it again when it dies.
//! Nothing of the host's loopback is reachable through it, and it forwards no port by itself.
//!
//! pasta reads the host's resolv.conf once. When another resolver at a loopback address stands there, which pods reach
//! only through the driver, it is started anew ([`Outbound::follow_resolver`]); slirp4netns reads the file anew itself.

mod living;

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use living::Living;

use crate::store::{self, RecordError};
use crate::sys::async_fd;
use crate::sys::namespace::inode;
use crate::sys::process::ProcessId;

/// Where pods find the host's resolver when pasta carries their packets: link-local, used by nothing else.
const PASTA_RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 53);

/// The node's own address behind pasta, with its gateway. Not the host's, which pasta would take by itself: the host
/// could then not be reached from the node. The same range as slirp4netns' default.
const PASTA_ADDRESS: (Ipv4Addr, u8, Ipv4Addr) = (Ipv4Addr::new(10, 0, 2, 100), 24, Ipv4Addr::new(10, 0, 2, 2));

/// slirp4netns' own choice, below its default range 10.0.2.0/24.
const SLIRP_RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// What both drivers carry at most in one packet; larger packets make them several times as fast.
pub const MTU: u32 = 65520;

/// Between two attempts to start a driver that dies: doubled each time, from the first to the second.
const RESTART_DELAYS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// A driver that lived for this long is started again at once.
const STEADY: Duration = Duration::from_secs(60);

/// For a driver that is asked to end, before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// The network namespace that it is to serve, as a driver finds it.
const NAMESPACE: &str = "/proc/self/fd/0";

/// Below the state directory.
const LOG: &str = "outbound.log";

/// Which program carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// passt's pasta.
    Pasta,
    /// slirp4netns.
    Slirp4netns,
}

impl Driver {
    const ALL: [Self; 2] = [Self::Pasta, Self::Slirp4netns];

    fn program(self) -> &'static str {
        match self {
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
        }
    }

    /// The network namespace is the driver's standard input, so that no path and no process id is needed.
    fn arguments(self, host_loopback: bool) -> Vec<String> {
        let (address, bits, gateway) = PASTA_ADDRESS;
        let loopback = match (self, host_loopback) {
            (_, true) => "",
            (Self::Pasta, false) => "--no-map-gw",
            (Self::Slirp4netns, false) => "--disable-host-loopback",
        };
        let text = match self {
            Self::Pasta => format!(
                "--foreground --quiet --config-net --ns-ifname tap0 --address {address} --netmask {bits} --gateway {gateway} --netns {NAMESPACE} --netns-only --runas 0 --mtu {MTU} \
                 {loopback} --tcp-ports none --udp-ports none --tcp-ns none --udp-ns none --dns-forward {PASTA_RESOLVER}"
            ),
            Self::Slirp4netns => {
                format!("--configure --mtu={MTU} {loopback} --enable-ipv6 --netns-type=path {NAMESPACE} tap0")
            }
        };
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// The address at which pods reach the host's resolver.
    pub fn resolver(self) -> IpAddr {
        match self {
            Self::Pasta => PASTA_RESOLVER.into(),
            Self::Slirp4netns => SLIRP_RESOLVER.into(),
        }
    }

    /// The first that is installed.
    pub fn installed() -> Option<Self> {
        let path = std::env::var_os("PATH")?;
        let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
        Self::ALL.into_iter().find(|d| directories.iter().any(|dir| dir.join(d.program()).is_file()))
    }
}

/// `STATE/outbound.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    driver: Driver,
    #[serde(flatten)]
    process: ProcessId,
    /// Inode of the network namespace that it serves; a driver may outlive a node that was killed.
    network: u64,
    /// Whether the host's loopback addresses are reached through it.
    #[serde(default)]
    host_loopback: bool,
    /// Which resolver the host had when it was started; unspecified: none. None: an earlier release did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resolver: Option<Ipv4Addr>,
}

impl Record {
    /// Whether pods ask this driver for a resolver that the host has no more.
    fn asks_elsewhere(&self, now: Ipv4Addr) -> bool {
        self.driver == Driver::Pasta && now.is_loopback() && self.resolver.is_some_and(|then| then != now)
    }
}

const RECORD_VERSION: u32 = 1;

/// Longest resolv.conf that is read.
const RESOLV_CONF_LIMIT_BYTES: u64 = 1 << 20;

/// The host's resolver as pasta finds it: the first of IPv4. Unspecified: there is none.
fn host_resolver() -> Ipv4Addr {
    let mut text = String::new();
    let read = File::open("/etc/resolv.conf").and_then(|f| f.take(RESOLV_CONF_LIMIT_BYTES).read_to_string(&mut text));
    let first = || text.lines().find_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    read.ok().and_then(|_| first()).unwrap_or(Ipv4Addr::UNSPECIFIED)
}

fn record_path(state: &Path) -> PathBuf {
    state.join("outbound.json")
}

/// Which driver there is, as far as its record says.
fn recorded(state: &Path) -> Result<Option<Record>, RecordError> {
    store::read_or_set_aside(&record_path(state), RECORD_VERSION, "which process is the way out is not known any more")
}

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
        /// What the kernel said.
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
    /// Finds the driver that runs, or starts one that joins `network` (a network namespace). The caller is in the
    /// host's network namespace and in the user namespace that owns `network`. Without `wanted` it is the first driver
    /// that is installed. One that runs is replaced when it was not started for the same `host_loopback`.
    pub async fn ensure(
        state: &Path,
        network: OwnedFd,
        wanted: Option<Driver>,
        host_loopback: bool,
    ) -> Result<Self, OutboundError> {
        let network = Arc::new(network);
        let served = inode(&*network).map_err(OutboundError::Namespace)?;
        let known = recorded(state)?.filter(|record| record.process.is_alive());
        let found = match known {
            None => adopt(state, served).map_err(OutboundError::Leftover)?,
            known => known,
        };
        let found = found
            .filter(|record| record.network == served && record.host_loopback == host_loopback)
            .filter(|record| !record.asks_elsewhere(host_resolver()));
        if found.is_none() {
            Self::stop(state).map_err(OutboundError::Leftover)?;
        }
        let running = found.and_then(|record| Some((record.driver, record.process.open().ok()??)));
        let (driver, pidfd) = match running {
            Some(running) => running,
            None => {
                let driver = wanted.or_else(Driver::installed).ok_or(OutboundError::NotInstalled)?;
                let started = start(driver, state, &network, host_loopback);
                (driver, started.map_err(|source| OutboundError::Start { program: driver.program(), source })?)
            }
        };
        let resolver_changes = Arc::new(Notify::new());
        let watched =
            Watched { driver, state: state.to_owned(), network, host_loopback, changes: resolver_changes.clone() };
        let watch = tokio::spawn(async move { watched.watch(pidfd).await });
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

    /// The driver that is recorded under `state`, if one runs.
    pub fn running(state: &Path) -> Option<ProcessId> {
        recorded(state).ok().flatten().map(|record| record.process).filter(ProcessId::is_alive)
    }

    /// Ends the driver that is recorded under `state`, if one runs, and waits until it has ended. For `cricket stop`;
    /// a daemon would start it again.
    pub fn stop(state: &Path) -> io::Result<()> {
        if let Some(found) = recorded(state).map_err(io::Error::other)? {
            found.process.end(STOP_PATIENCE)?;
        }
        store::remove(&record_path(state)).map_err(io::Error::other)
    }
}

/// Drivers of the node that our user namespace is, or of one below it, by its network namespace's inode: where the
/// record does not say.
pub fn serving(network: u64) -> io::Result<Vec<ProcessId>> {
    Ok(living::of_namespace(network)?.into_iter().map(|living| living.process).collect())
}

/// Records the driver that serves the node without a record; what else serves it, or does so otherwise than a driver of
/// ours, is ended.
fn adopt(state: &Path, network: u64) -> io::Result<Option<Record>> {
    let mut adopted = None;
    // It goes with the state directory only: where none was ever started, nobody is looked for.
    let found = if state.join(LOG).exists() { living::of_namespace(network)? } else { Vec::new() };
    for Living { driver, process, host_loopback } in found {
        let (pid, program) = (process.pid, driver.program());
        let Some(host_loopback) = host_loopback.filter(|_| adopted.is_none()) else {
            tracing::warn!(pid, program, "a way out that is not known is ended; connections through it are lost");
            process.end(STOP_PATIENCE)?;
            continue;
        };
        tracing::info!(pid, program, "the way out of the node is found again");
        let record = Record { version: RECORD_VERSION, driver, process, network, host_loopback, resolver: None };
        store::write(&record_path(state), &record).map_err(io::Error::other)?;
        adopted = Some(record);
    }
    Ok(adopted)
}

fn start(driver: Driver, state: &Path, network: &OwnedFd, host_loopback: bool) -> io::Result<OwnedFd> {
    let log = File::create(state.join(LOG))?;
    // Before it reads it: a change in between is seen as one.
    let resolver = host_resolver();
    let child = Command::new(driver.program())
        .args(driver.arguments(host_loopback))
        .stdin(Stdio::from(network.try_clone()?))
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        .process_group(0)
        .spawn()?;
    // One that dies at once is watched and started again like any other.
    let (process, pidfd) = ProcessId::of_child(&child)?;
    let record = Record {
        version: RECORD_VERSION,
        driver,
        process,
        network: inode(network)?,
        host_loopback,
        resolver: Some(resolver),
    };
    store::write(&record_path(state), &record).map_err(io::Error::other)?;
    Ok(pidfd)
}

/// A driver, and how another takes its place.
#[derive(Debug)]
struct Watched {
    driver: Driver,
    state: PathBuf,
    network: Arc<OwnedFd>,
    host_loopback: bool,
    changes: Arc<Notify>,
}

impl Watched {
    async fn watch(&self, first: OwnedFd) {
        let mut pidfd = Some(first);
        let mut delay = RESTART_DELAYS.0;
        let driver = self.driver.program();
        loop {
            let since = std::time::Instant::now();
            let wanted = match pidfd.take() {
                Some(pidfd) => self.ended(pidfd).await,
                None => false,
            };
            if since.elapsed() >= STEADY {
                delay = RESTART_DELAYS.0;
            }
            if !wanted {
                // A driver that dies at once must not be started in a loop.
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RESTART_DELAYS.1);
            }
            match start(self.driver, &self.state, &self.network, self.host_loopback) {
                Ok(started) => pidfd = Some(started),
                Err(error) => tracing::warn!(%error, driver, "the way out cannot be started"),
            }
        }
    }

    /// Waits for its end. True: it was asked to end, because the host has another resolver.
    async fn ended(&self, pidfd: OwnedFd) -> bool {
        let driver = self.driver.program();
        let Ok(pidfd) = async_fd::register(pidfd, Interest::READABLE) else { return false };
        let mut wanted = false;
        loop {
            tokio::select! {
                _ = pidfd.readable() => break,
                () = self.changes.notified(), if !wanted => {
                    wanted = self.asks_elsewhere()
                        && rustix::process::pidfd_send_signal(pidfd.get_ref(), Signal::TERM).is_ok();
                }
            }
        }
        // Collects the status of a driver that this daemon started; one of an earlier daemon is somebody else's child.
        let id = WaitId::PidFd(pidfd.get_ref().as_fd());
        let _ = rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        let why =
            if wanted { "is started anew: the host has another resolver" } else { "has died and is started again" };
        tracing::warn!(driver, "the way out {why}; connections through it are lost");
        wanted
    }

    fn asks_elsewhere(&self) -> bool {
        store::read::<Record>(&record_path(&self.state)).is_ok_and(|record| record.asks_elsewhere(host_resolver()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_record_is_set_aside_and_a_later_one_left_alone() {
        let state = std::env::temp_dir().join(format!("cricket-outbound-{}", std::process::id()));
        std::fs::create_dir_all(&state).expect("a directory");
        let (path, aside) = (record_path(&state), state.join("outbound.json.unreadable"));
        std::fs::write(&path, "{\"version\": 1, \"dri").expect("written");
        assert!(recorded(&state).expect("set aside").is_none());
        assert!(aside.exists() && !path.exists());
        std::fs::write(&path, "{\"version\": 1000, \"driver\": [\"another\"]}").expect("written");
        assert!(recorded(&state).expect_err("a later one").is_newer());
        let error = Outbound::stop(&state).expect_err("it is not ours to end").to_string();
        assert!(error.contains("a newer cricket wrote it") && path.exists(), "{error}");
        std::fs::remove_dir_all(&state).expect("removed");
    }

    #[test]
    fn only_another_resolver_that_pods_reach_through_it_replaces_a_driver() {
        let then = |driver, resolver: Option<[u8; 4]>| Record {
            version: RECORD_VERSION,
            driver,
            process: ProcessId { pid: 1, start_time: 1 },
            network: 1,
            host_loopback: false,
            resolver: resolver.map(Ipv4Addr::from),
        };
        let (stub, other, remote) = ([127, 0, 0, 53], [127, 0, 0, 1], [9, 9, 9, 9]);
        for (driver, before, now, expected) in [
            (Driver::Pasta, Some(stub), other, true),
            (Driver::Pasta, Some(remote), stub, true),
            (Driver::Pasta, Some([0; 4]), stub, true),
            (Driver::Pasta, Some(stub), stub, false),
            (Driver::Pasta, Some(stub), remote, false),
            (Driver::Pasta, Some(stub), [0; 4], false),
            (Driver::Pasta, None, stub, false),
            (Driver::Slirp4netns, Some(stub), other, false),
        ] {
            assert_eq!(then(driver, before).asks_elsewhere(now.into()), expected, "{driver:?} {before:?} {now:?}");
        }
    }

    #[test]
    fn no_driver_forwards_ports_or_shows_the_hosts_loopback() {
        let pasta = Driver::Pasta.arguments(false).join(" ");
        assert!(pasta.contains("--no-map-gw") && pasta.contains("--tcp-ns none") && pasta.contains("--udp-ns none"));
        assert!(Driver::Slirp4netns.arguments(false).contains(&"--disable-host-loopback".to_owned()));
    }

    #[test]
    fn records_of_earlier_releases_are_read() {
        for path in store::of_earlier_releases("outbound.json") {
            let record = recorded(path.parent().expect("a directory")).expect("read").expect("there");
            assert!(record.driver == Driver::Pasta && record.resolver.is_none(), "{record:?}");
        }
    }
}
