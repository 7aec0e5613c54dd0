//! `cricket way-out`: runs a driver and starts it again when it dies, whether or not a daemon is there; it ends the
//! driver when it is told to end, and the kernel does when it is killed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use super::driver::{Driver, INTERFACE, READY};
use super::record::{self, Record};
use super::{HostResolvers, STOP_PATIENCE, host_resolvers};
use crate::network::builtin::RouteSocket;
use crate::sys::namespace::{Namespace, inode};
use crate::sys::process::ProcessId;
use crate::sys::spawn::join_and_die_with_thread;

/// Between two attempts to start a driver that dies: doubled each time, from the first to the second.
const RESTART_DELAYS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// A driver that lived for this long is started again at once.
const STEADY: Duration = Duration::from_secs(60);

/// What is to be kept running.
#[derive(Debug)]
pub struct Order {
    /// Where its record is.
    pub state: PathBuf,
    /// Which program.
    pub driver: Driver,
    /// Whether the host's loopback addresses are reached through it.
    pub host_loopback: bool,
    /// The node's network namespace.
    pub network: OwnedFd,
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// This process is to end.
    Told,
    /// The driver has.
    Died,
    /// Nothing happened in the time.
    Nothing,
}

/// Until SIGTERM or SIGINT; at SIGHUP the record is written anew. The first start that fails is an error; later ones are tried again.
pub fn run(order: &Order) -> io::Result<()> {
    let wanted = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD]);
    wanted.thread_block()?;
    let signals = SignalFd::new(&wanted)?;
    let mut delay = RESTART_DELAYS.0;
    let mut running = Some(Running::start(order)?);
    loop {
        let since = Instant::now();
        let event = match &mut running {
            Some(running) => wait(&signals, Some((order, running)), None)?,
            None => Event::Died,
        };
        if event == Event::Told {
            return running.map_or(Ok(()), Running::end);
        }
        if since.elapsed() >= STEADY {
            delay = RESTART_DELAYS.0;
        }
        eprintln!("{} has died and is started again; connections through it are lost", order.driver.program());
        // A driver that dies at once must not be started in a loop.
        if wait(&signals, None, Some(delay))? == Event::Told {
            return Ok(());
        }
        delay = (delay * 2).min(RESTART_DELAYS.1);
        running = Running::start(order)
            .inspect_err(|error| eprintln!("{} cannot be started: {error}", order.driver.program()))
            .ok();
    }
}

/// A driver, and until it has been read the pipe that says it is ready.
struct Running {
    child: Child,
    ready: Option<File>,
    /// Those of the host when it was started.
    resolvers: HostResolvers,
}

impl Running {
    fn start(order: &Order) -> io::Result<Self> {
        // Before the driver reads it: a change in between is seen as one.
        let resolvers = host_resolvers();
        let (ready, says_so) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut command = Command::new(order.driver.program());
        command.args(order.driver.arguments(order.host_loopback)).stdin(Stdio::from(order.network.try_clone()?));
        join_and_die_with_thread(&mut command, &[], Some((says_so.as_fd(), READY)))?;
        let child = command.spawn()?;
        let running = Self { ready: Some(File::from(ready)), child, resolvers };
        let recorded = running.record(order);
        if let Err(error) = recorded {
            running.end()?;
            return Err(error);
        }
        Ok(running)
    }

    fn record(&self, order: &Order) -> io::Result<()> {
        // One that dies at once is started again like any other.
        let (driver, _) = ProcessId::of_child(&self.child)?;
        let keeper = Some(ProcessId::own()?);
        let network = inode(&order.network)?;
        let record = Record::new(order.driver, driver, keeper, network, order.host_loopback, self.resolvers);
        record::write(&order.state, &record)
    }

    fn end(mut self) -> io::Result<()> {
        if let Ok(process) = ProcessId::of(self.child.id() as i32) {
            process.end(STOP_PATIENCE)?;
        }
        self.child.wait().map(drop)
    }

    /// The driver has said that it is ready, or will not.
    fn equip(&mut self, order: &Order) {
        let mut said = [0];
        let is_ready = self.ready.take().is_some_and(|mut pipe| pipe.read(&mut said).is_ok_and(|length| length > 0));
        let lacks = order.driver.lacks().filter(|_| is_ready);
        if let Some(address) = lacks
            && let Err(error) = configure(&order.network, address)
        {
            eprintln!("{} is a way out for IPv4 only: {error}", order.driver.program());
        }
    }
}

/// In a thread, for it stays in the node's network namespace.
fn configure(network: &OwnedFd, address: (std::net::IpAddr, u8, std::net::IpAddr)) -> io::Result<()> {
    std::thread::scope(|scope| {
        let work = || {
            Namespace::Network.enter(network)?;
            RouteSocket::open()?.configure(INTERFACE, &[address])
        };
        scope.spawn(work).join().unwrap_or_else(|_| Err(io::Error::other("the thread ended by a defect")))
    })
}

/// Until something happens, for `patience` at most. Without a driver only signals are waited for.
fn wait(
    signals: &SignalFd,
    mut running: Option<(&Order, &mut Running)>,
    patience: Option<Duration>,
) -> io::Result<Event> {
    let end = patience.map(|patience| Instant::now() + patience);
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Event::Nothing);
        }
        let timeout = left.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from).unwrap_or(PollTimeout::MAX);
        let pipe = running.as_ref().and_then(|(_, running)| running.ready.as_ref()).map(AsFd::as_fd);
        let mut watched: Vec<PollFd<'_>> =
            [Some(signals.as_fd()), pipe].into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut watched, timeout)?;
        let happened: Vec<bool> = watched.iter().map(|fd| fd.any().unwrap_or_default()).collect();
        let heard = if happened.first() == Some(&true) { signals.read_signal()? } else { None };
        let signal = heard.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok());
        if matches!(signal, Some(Signal::SIGTERM | Signal::SIGINT)) {
            return Ok(Event::Told);
        }
        let Some((order, running)) = &mut running else { continue };
        if signal == Some(Signal::SIGHUP)
            && let Err(error) = running.record(order)
        {
            eprintln!("{} cannot be recorded: {error}", order.driver.program());
        }
        if running.child.try_wait()?.is_some() {
            return Ok(Event::Died);
        }
        if happened.get(1) == Some(&true) {
            running.equip(order);
        }
    }
}
