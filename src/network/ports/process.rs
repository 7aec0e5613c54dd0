//! The forwarder's process as the daemon sees it: started when a pod first has a host port, found again by the next
//! daemon, ended by `cricket stop`. `STATE/forwarder.json` says which process it is, `STATE/forwarder.sock` is its
//! door. A daemon may be killed before it has written the record, and files are lost: a forwarder is known by its command
//! line too, which names the state directory. One that runs and is not behind the door is ended, for nobody could free
//! what it has.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::wire::{self, Reply, Request};
use crate::store::{self, RecordError};
use crate::sys::process::{ProcessId, by_command_line};
use crate::sys::spawn::join_and_pass;

/// The number at which `cricket forward` finds its listening socket.
pub const DOOR: i32 = 3;
const SOCKET: &str = "forwarder.sock";
const RECORD: &str = "forwarder.json";
const LOG: &str = "forwarder.log";
/// How it is started: `cricket --state STATE forward`.
const STATE: &str = "--state";
const FORWARD: &str = "forward";
const RECORD_VERSION: u32 = 1;
/// Daemons that wait to be let in.
const BACKLOG: i32 = 8;
/// The forwarder never waits for anything; a machine with more work than processors does.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// For it to end when it is asked.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    process: ProcessId,
}

/// How a forwarder is started.
#[derive(Debug)]
pub struct Launch {
    /// The state directory.
    pub state: PathBuf,
    /// By which a child of ours executes this program.
    pub executable: PathBuf,
    /// The node's network namespace, where it is not the daemon's.
    pub namespace: Option<OwnedFd>,
    /// How long it may take to answer.
    pub patience: Duration,
}

/// Why something was not done.
#[derive(Debug)]
pub enum AskError {
    /// It answered that it cannot.
    Refused(String),
    /// It did not answer. What it may answer yet would be taken for an answer to something else: the link is of no use.
    Unanswered(io::Error),
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        Self::Unanswered(error)
    }
}

/// A connection to the forwarder.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    /// Where this daemon started it: to be waited for.
    child: Option<Child>,
    patience: Duration,
}

impl Link {
    /// To the forwarder that runs; none where none runs. One that cannot be reached is ended.
    pub fn find(launch: &Launch) -> io::Result<Option<Self>> {
        let state = &launch.state;
        let running = running(state);
        match (Self::knock(launch), running) {
            (Ok(Some(link)), running) => {
                note(state, running)?;
                Ok(Some(link))
            }
            (Ok(None) | Err(_), Some(process)) => {
                tracing::warn!(
                    pid = process.pid,
                    "the forwarder of host ports cannot be reached and is ended; connections through it are lost"
                );
                stop(state).map(|()| None)
            }
            (nobody, None) => nobody,
        }
    }

    fn knock(launch: &Launch) -> io::Result<Option<Self>> {
        let address = Address::of(&launch.state)?;
        let socket = socket()?;
        for which in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, which, Some(launch.patience))?;
        }
        match rustix::net::connect(&socket, &address.path) {
            Ok(()) => Ok(Some(Self { socket, child: None, patience: launch.patience })),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// To a forwarder that is started now.
    pub fn start(launch: &Launch) -> io::Result<Self> {
        let door = door(&launch.state)?;
        let log = File::create(launch.state.join(LOG))?;
        let mut command = Command::new(&launch.executable);
        command.arg(STATE).arg(&launch.state).arg(FORWARD);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let namespaces = launch.namespace.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>()?;
        join_and_pass(&mut command, &namespaces, &door, DOOR)?;
        let child = command.spawn()?;
        let (process, _) = ProcessId::of_child(&child)?;
        record(&launch.state, process)?;
        let link = Self::knock(launch)?.ok_or(io::ErrorKind::ConnectionRefused)?;
        Ok(Self { child: Some(child), ..link })
    }

    /// Asks, and waits for the answer.
    pub fn ask(&self, request: &Request, sockets: &[BorrowedFd<'_>]) -> Result<Reply, AskError> {
        let late = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {:?}", self.patience))
            }
            _ => error,
        };
        wire::send(&self.socket, request, sockets).map_err(late)?;
        let answer = wire::receive::<Reply>(&self.socket).map_err(late)?;
        let (reply, _) = answer.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset))?;
        match reply.error {
            Some(error) => Err(AskError::Refused(error)),
            None => Ok(reply),
        }
    }

    /// Of one that does not answer any more: what may be left of it goes.
    pub fn finish(self, state: &Path) -> io::Result<()> {
        let stopped = stop(state);
        // Whoever watches it has a copy of the socket, and whoever it was may live.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if let Some(mut child) = self.child {
            // Ended above; without this it would be a zombie for as long as we live.
            let _ = child.kill().and_then(|()| child.wait());
        }
        stopped
    }

    /// A descriptor that hangs up when the forwarder ends.
    pub fn watch(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }
}

/// Waits until a descriptor of [`Link::watch`] hangs up.
pub fn wait_for_end(link: &OwnedFd) {
    use rustix::event::{PollFd, PollFlags, poll};
    // Nothing but the hang-up is waited for.
    while let Ok(0) | Err(rustix::io::Errno::INTR) = poll(&mut [PollFd::new(link, PollFlags::empty())], None) {}
}

/// Which process it is, as far as its record says.
fn recorded(state: &Path) -> Result<Option<ProcessId>, RecordError> {
    const LOSS: &str = "which process forwards host ports is not known any more";
    let record = store::read_or_set_aside::<Record>(&state.join(RECORD), RECORD_VERSION, LOSS)?;
    Ok(record.map(|record| record.process))
}

fn record(state: &Path, process: ProcessId) -> io::Result<()> {
    let record = Record { version: RECORD_VERSION, process };
    store::write(&state.join(RECORD), &record).map_err(io::Error::other)
}

/// Of a forwarder that answers, where the record names another or none.
fn note(state: &Path, running: Option<ProcessId>) -> io::Result<()> {
    match (recorded(state).map_err(io::Error::other)?, running) {
        (known, Some(process)) if known != Some(process) => record(state, process),
        _ => Ok(()),
    }
}

/// The forwarder of `state`, if it runs.
pub fn running(state: &Path) -> Option<ProcessId> {
    let by_record = recorded(state).ok().flatten().filter(ProcessId::is_alive);
    by_record.or_else(|| unrecorded(state))
}

fn unrecorded(state: &Path) -> Option<ProcessId> {
    // It goes with the state directory only: where none was ever started, nobody is looked for.
    state.join(LOG).exists().then_some(())?;
    let wanted = [STATE.as_ref(), state.as_os_str(), FORWARD.as_ref()];
    let found = by_command_line(|words| (words.get(1..)? == wanted).then_some(())).ok()?;
    found.into_iter().next().map(|(process, ())| process)
}

/// Ends the forwarder of `state`, if one runs, with all its connections. One of a later release is left alone.
pub fn stop(state: &Path) -> io::Result<()> {
    recorded(state).map_err(io::Error::other)?;
    while let Some(process) = running(state) {
        process.end(STOP_PATIENCE)?;
    }
    match std::fs::remove_file(state.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    store::remove(&state.join(RECORD)).map_err(io::Error::other)
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A unix address is short, a state directory may be long: the way leads through the opened directory.
struct Address {
    path: SocketAddrUnix,
    _directory: OwnedFd,
}

impl Address {
    fn of(state: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(state, flags, Mode::empty())?;
        let path = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", directory.as_fd().as_raw_fd()))?;
        Ok(Self { path, _directory: directory })
    }
}

/// Replaces a socket that nobody listens at any more.
pub(super) fn door(state: &Path) -> io::Result<OwnedFd> {
    let address = Address::of(state)?;
    let socket = socket()?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    if rustix::net::bind(&socket, &address.path) == Err(rustix::io::Errno::ADDRINUSE) {
        std::fs::remove_file(state.join(SOCKET))?;
        rustix::net::bind(&socket, &address.path)?;
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_earlier_releases_are_read_damaged_ones_set_aside_and_later_ones_left_alone() {
        for path in store::of_earlier_releases(RECORD) {
            assert!(recorded(path.parent().expect("a directory")).expect("read").is_some());
        }
        let state = std::env::temp_dir().join(format!("cricket-forwarder-record-{}", std::process::id()));
        std::fs::create_dir_all(&state).expect("a directory");
        std::fs::write(state.join(RECORD), "{\"version\": 1, \"pro").expect("written");
        assert!(recorded(&state).expect("set aside").is_none());
        assert!(state.join("forwarder.json.unreadable").exists() && !state.join(RECORD).exists());
        std::fs::write(state.join(RECORD), "{\"version\": 1000, \"process\": \"another\"}").expect("written");
        assert!(stop(&state).expect_err("it is not ours to end").to_string().contains("a newer cricket wrote it"));
        assert!(state.join(RECORD).exists());
        std::fs::remove_dir_all(&state).expect("removed");
    }
}
