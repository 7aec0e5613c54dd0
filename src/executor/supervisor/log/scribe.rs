//! A pod's scribe: the process that touches the disk of the pod's logs, so that a disk which does not answer holds up
//! the logs and nothing else. The supervisor has one thread; a write that the kernel does not end would stop its loop.
//!
//! It is forked from the supervisor with the pod's first line, or its second log (the first is opened when nothing runs
//! yet that could be held up: most pods never pay for a process before they say something), and ends when the
//! supervisor's end of their socket closes; what it is writing then, it ends first. One order at a time: lines lie in
//! memory that both see, the order says how many, the answer how many are in the file. The supervisor waits
//! [`PATIENCE`] for an answer and goes on to other things then; its loop watches [`Scribe::socket`]. Where no process
//! can be made the supervisor writes itself.

mod process;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::LogError;
use super::file::{LogFile, LogPath, Unwritten};
use super::scratch::WRITE_LENGTH;
use crate::executor::protocol;
use crate::sys::descriptors;
use crate::sys::fork;
use crate::sys::pages::Pages;
use process::{Answer, Kind, Order};

/// How long the supervisor's loop stands still for a disk.
const PATIENCE: Duration = Duration::from_millis(20);
/// For a log to be opened, which has to be told to whoever asks for it.
const PATIENCE_TO_OPEN: Duration = Duration::from_secs(1);
/// For the last words at the supervisor's end.
const PATIENCE_AT_THE_END: Duration = Duration::from_secs(1);

/// A log that the scribe knows, or is told of anew.
#[derive(Debug)]
pub struct LogHandle {
    number: u64,
    path: LogPath,
}

impl LogHandle {
    /// Where it is, for messages.
    pub fn path(&self) -> std::path::PathBuf {
        self.path.full()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Scribe {
    /// Whether a process may be made.
    apart: bool,
    process: Option<Process>,
    /// The pod's first log until its first line; and all of them where the supervisor writes itself.
    own: BTreeMap<u64, LogFile>,
    next: u64,
}

#[derive(Debug)]
struct Process {
    pid: i32,
    socket: OwnedFd,
    board: Pages,
    /// What it has open.
    known: Vec<u64>,
    /// The order that it is at.
    order: Option<(u64, Kind)>,
    /// Answers for logs that have not asked for them yet.
    answers: BTreeMap<u64, Answer>,
}

/// What became of an order.
enum Asked {
    Answered(Answer),
    /// It is at it.
    Pending,
    /// It is at another.
    Busy,
    /// There is no process.
    Gone,
}

/// What became of lines that were [`Unwritten::is_pending`].
#[derive(Debug)]
pub enum Settled {
    /// They are in the file.
    Written,
    /// They are not, or not all.
    Failed(Unwritten),
    /// That is not known yet.
    Pending,
}

impl Scribe {
    /// Which writes in this process: for tests, and where a process cannot be made.
    pub fn here() -> Self {
        Self { apart: false, process: None, own: BTreeMap::new(), next: 1 }
    }

    /// Which is a process of its own when there is something to write. The caller has one thread.
    pub fn apart() -> Self {
        Self { apart: true, ..Self::here() }
    }

    /// Readable when there is something for [`Scribe::listen`]; with the process's id, for there may come another.
    pub fn socket(&self) -> Option<(i32, BorrowedFd<'_>)> {
        self.process.as_ref().map(|process| (process.pid, process.socket.as_fd()))
    }

    /// Opens a log, making the file.
    pub fn open(&mut self, path: LogPath) -> Result<LogHandle, LogError> {
        let handle = LogHandle { number: self.next, path };
        self.next += 1;
        let is_first = self.process.is_none() && self.own.is_empty();
        match is_first {
            true => drop(self.own.insert(handle.number, LogFile::open(handle.path.clone())?)),
            false => self.make_known(&handle, PATIENCE_TO_OPEN)?,
        }
        Ok(handle)
    }

    /// Opens the same path again. On error the open file stays, and none is made; where the disk does not answer it may
    /// come to it later.
    pub fn reopen(&mut self, handle: &LogHandle) -> Result<(), LogError> {
        match self.own.get_mut(&handle.number) {
            Some(file) if !self.apart => file.reopen(),
            // One that has come since opens it where it is now.
            _ if self.process.as_ref().is_none_or(|process| !process.knows(handle.number)) => {
                self.make_known(handle, PATIENCE_TO_OPEN)
            }
            _ => self.ask_to_open(handle, PATIENCE_TO_OPEN),
        }
    }

    /// Appends whole lines, of which there are at most [`WRITE_LENGTH`] bytes.
    pub fn append(&mut self, handle: &LogHandle, lines: &[u8], until: Option<Instant>) -> Result<(), Unwritten> {
        if lines.is_empty() {
            return Ok(());
        }
        let patience = until.map_or(PATIENCE, |at| at.saturating_duration_since(Instant::now()).max(PATIENCE));
        let is_first = self.process.is_none();
        self.make_known(handle, if is_first { PATIENCE_TO_OPEN } else { patience })
            .map_err(|error| Unwritten::nothing(io::Error::other(error)))?;
        if let Some(file) = self.own.get_mut(&handle.number) {
            return file.append(lines);
        }
        match self.ask(handle, Kind::Append, lines, patience) {
            Asked::Answered(answer) => answer.of_append(),
            Asked::Pending => Err(Unwritten::pending()),
            Asked::Busy => Err(Unwritten::nothing(io::ErrorKind::TimedOut.into())),
            Asked::Gone => Err(Unwritten::nothing(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// What became of the log's pending lines.
    pub fn settle(&mut self, handle: &LogHandle, until: Option<Instant>) -> Settled {
        self.listen(until.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now())));
        let gone = || Settled::Failed(Unwritten::nothing(io::ErrorKind::BrokenPipe.into()));
        let Some(process) = &mut self.process else { return gone() };
        match (process.answers.remove(&handle.number), process.order) {
            (Some(answer), _) => answer.of_append().map_or_else(Settled::Failed, |()| Settled::Written),
            (None, Some((number, Kind::Append))) if number == handle.number => Settled::Pending,
            (None, _) => gone(),
        }
    }

    /// Takes an answer that has come, waiting at most so long.
    pub fn listen(&mut self, patience: Duration) {
        let Some(process) = self.process.as_mut() else { return };
        if process.order.is_none() {
            // Nothing is due but its end.
            if is_readable(&process.socket, Duration::ZERO) {
                self.process = None;
            }
            return;
        }
        if !is_readable(&process.socket, patience) {
            return;
        }
        let (order, answer) = (process.order.take(), process::receive::<Answer>(&process.socket));
        match (order, answer) {
            (Some((number, Kind::Append)), Ok(Some(answer))) => drop(process.answers.insert(number, answer)),
            (Some((number, Kind::Open)), Ok(Some(answer))) if answer.fault == 0 => process.know(number),
            (_, Ok(Some(_))) => {}
            (_, Ok(None) | Err(_)) => self.process = None,
        }
    }

    /// A log is not written any more.
    pub fn close(&mut self, handle: &LogHandle) {
        self.own.remove(&handle.number);
        if let Some(process) = &mut self.process {
            process.answers.remove(&handle.number);
            process.known.retain(|number| *number != handle.number);
        }
        // While it is busy the file stays open until the pod's end, which harms nobody.
        let _ = self.ask(handle, Kind::Close, &[], PATIENCE);
    }

    /// Gives memory back. Harmless at any time.
    pub fn give_back(&mut self) {
        if let Some(process) = self.process.as_mut().filter(|process| process.order.is_none()) {
            process.board.give_back();
        }
    }

    /// Ends the process, and waits for what it is at, a while.
    pub fn end(&mut self) {
        let Some(process) = self.process.take() else { return };
        let pid = rustix::process::Pid::from_raw(process.pid);
        let ended = pid.and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
        drop(process);
        // Waited for, so that nothing is left of it when the pod's end is answered.
        if ended.is_some_and(|ended| is_readable(&ended, PATIENCE_AT_THE_END)) {
            let _ = rustix::process::waitpid(pid, rustix::process::WaitOptions::NOHANG);
        }
    }

    fn make_known(&mut self, handle: &LogHandle, patience: Duration) -> Result<(), LogError> {
        if self.process.as_ref().is_some_and(|process| process.knows(handle.number)) {
            return Ok(());
        }
        if self.process.is_none() && self.apart {
            match Process::start() {
                Ok(process) => self.process = Some(process),
                Err(error) => {
                    eprintln!("logs are written by the supervisor itself, for it cannot make a process: {error}");
                    self.apart = false;
                }
            }
        }
        if self.process.is_none() {
            if let Entry::Vacant(place) = self.own.entry(handle.number) {
                place.insert(LogFile::open(handle.path.clone())?);
            }
            return Ok(());
        }
        self.ask_to_open(handle, patience)?;
        self.own.remove(&handle.number);
        Ok(())
    }

    fn ask_to_open(&mut self, handle: &LogHandle, patience: Duration) -> Result<(), LogError> {
        let failed = |source| LogError::Open { path: handle.path.full(), source };
        match self.ask(handle, Kind::Open, &[], patience) {
            Asked::Answered(answer) => answer.of_open(&handle.path).inspect(|()| {
                self.process.iter_mut().for_each(|process| process.know(handle.number));
            }),
            Asked::Pending | Asked::Busy => {
                Err(failed(io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer; try again later")))
            }
            Asked::Gone => Err(failed(io::Error::other("the process that writes logs has ended; try again"))),
        }
    }

    fn ask(&mut self, handle: &LogHandle, kind: Kind, lines: &[u8], patience: Duration) -> Asked {
        let started = Instant::now();
        self.listen(patience);
        let Some(process) = &mut self.process else { return Asked::Gone };
        if process.order.is_some() {
            return Asked::Busy;
        }
        let (directory, name) = handle.path.parts();
        let is_open = matches!(kind, Kind::Open);
        let bytes = |path: &std::path::Path| if is_open { path.as_os_str().as_bytes().to_vec() } else { Vec::new() };
        let length = lines.len() as u64;
        let order =
            Order { log: handle.number, kind: kind.into(), length, directory: bytes(directory), name: bytes(name) };
        process.board[..lines.len()].copy_from_slice(lines);
        if process::send(&process.socket, &order).is_err() {
            self.process = None;
            return Asked::Gone;
        }
        let rest = patience.saturating_sub(started.elapsed());
        if !is_readable(&process.socket, rest) {
            process.order = Some((handle.number, kind));
            return Asked::Pending;
        }
        match process::receive(&process.socket) {
            Ok(Some(answer)) => Asked::Answered(answer),
            _ => {
                self.process = None;
                Asked::Gone
            }
        }
    }
}

impl Process {
    fn start() -> io::Result<Self> {
        let (socket, theirs) = protocol::pair()?;
        let board = Pages::shared(WRITE_LENGTH)?;
        let pid = fork::fork_and_run(None, || {
            let closed = descriptors::close_all_except(&[std::os::fd::AsRawFd::as_raw_fd(&theirs)]);
            let _ = rustix::thread::set_name(c"cricket-log");
            closed.map_or(1, |()| process::serve(&theirs, &board))
        })?;
        Ok(Self { pid, socket, board, known: Vec::new(), order: None, answers: BTreeMap::new() })
    }

    fn knows(&self, number: u64) -> bool {
        self.known.contains(&number)
    }

    fn know(&mut self, number: u64) {
        if !self.knows(number) {
            self.known.push(number);
        }
    }
}

fn is_readable(descriptor: impl AsFd, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        let rest = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            found => return matches!(found, Ok(1..)),
        }
    }
}
