//! The one place where the supervisor waits: epoll, level-triggered, with a name for each source.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// Events taken from the kernel at a time.
const BATCH: usize = 32;

/// What has become ready.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A daemon wants to connect.
    Listener,
    /// A child changed its state.
    Signals,
    /// A daemon's connection.
    Connection(u64),
    /// Output of a container; 0: stdout or terminal, 1: stderr.
    Output(String, u8),
    /// The report of a container's first process about its execve.
    StartReport(String),
    /// The report of an exec'd process about its execve.
    ExecReport(String),
    /// A TCP connection under way.
    Dial(u64),
    /// The disk of the logs has answered, or the process that writes them has ended.
    Scribe,
}

/// A ready source and how it is ready.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Who.
    pub source: Source,
    /// There is something to read, or the other end is gone.
    pub readable: bool,
    /// There is room to write, or the other end is gone.
    pub writable: bool,
}

/// The sources that are watched. A descriptor is removed before it is closed.
#[derive(Debug)]
pub struct Reactor {
    epoll: OwnedFd,
    next_token: u64,
    sources: BTreeMap<u64, Source>,
    tokens: BTreeMap<Source, u64>,
}

impl Reactor {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, next_token: 1, sources: BTreeMap::new(), tokens: BTreeMap::new() })
    }

    /// Watches `fd` for input.
    pub fn watch(&mut self, fd: impl AsFd, source: Source) -> io::Result<()> {
        self.add(fd.as_fd(), source, EventFlags::IN)
    }

    /// Watches `fd` for room to write.
    pub fn watch_writable(&mut self, fd: impl AsFd, source: Source) -> io::Result<()> {
        self.add(fd.as_fd(), source, EventFlags::OUT)
    }

    fn add(&mut self, fd: BorrowedFd<'_>, source: Source, flags: EventFlags) -> io::Result<()> {
        let token = self.next_token;
        epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)?;
        self.next_token += 1;
        self.sources.insert(token, source.clone());
        self.tokens.insert(source, token);
        Ok(())
    }

    /// Changes what a watched `fd` is watched for; neither: it rests.
    pub fn interest(&mut self, fd: impl AsFd, source: &Source, read: bool, write: bool) -> io::Result<()> {
        let Some(&token) = self.tokens.get(source) else { return Ok(()) };
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, read);
        flags.set(EventFlags::OUT, write);
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token), flags)?)
    }

    /// Stops watching; that it was not watched is fine.
    pub fn forget(&mut self, fd: impl AsFd, source: &Source) {
        if let Some(token) = self.tokens.remove(source) {
            self.sources.remove(&token);
            // Fails only for a descriptor that is not registered: then there is nothing to undo.
            let _ = epoll::delete(&self.epoll, fd);
        }
    }

    /// Stops watching a source whose descriptor is closed already.
    pub fn forget_closed(&mut self, source: &Source) {
        if let Some(token) = self.tokens.remove(source) {
            self.sources.remove(&token);
        }
    }

    /// Waits until something is ready or `deadline` is reached.
    pub fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<Ready>> {
        let timeout = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        let mut events = Vec::with_capacity(BATCH);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
        Ok(events.iter().filter_map(|event: &epoll::Event| self.name(event)).collect())
    }

    fn name(&self, event: &epoll::Event) -> Option<Ready> {
        let (flags, data) = (event.flags, event.data);
        let source = self.sources.get(&data.u64())?.clone();
        let ended = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        Some(Ready {
            source,
            readable: ended || flags.contains(EventFlags::IN),
            writable: ended || flags.contains(EventFlags::OUT),
        })
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_named_when_it_has_something_to_read_and_not_after_it_was_forgotten() {
        let mut reactor = Reactor::new().expect("epoll");
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        reactor.watch(&reader, Source::Listener).expect("watched");
        assert!(reactor.wait(Some(Instant::now())).expect("waited").is_empty());
        rustix::io::write(&writer, b"x").expect("written");
        let ready = reactor.wait(None).expect("waited");
        assert_eq!(ready[0].source, Source::Listener);
        reactor.forget(&reader, &Source::Listener);
        assert!(reactor.wait(Some(Instant::now())).expect("waited").is_empty());
    }

    #[test]
    fn the_end_of_a_pipe_counts_as_readable() {
        let mut reactor = Reactor::new().expect("epoll");
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        reactor.watch(&reader, Source::Signals).expect("watched");
        drop(writer);
        assert!(reactor.wait(None).expect("waited")[0].readable);
    }
}
