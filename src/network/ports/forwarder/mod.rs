//! THE OTHER PROCESS, `cricket forward`: carries what arrives at host ports to pods. One thread, epoll, no tokio.
//!
//! It lives in the node's network namespace, where the pods are reached; its listening sockets were made by the daemon,
//! in the host's network namespace and in the node's. It outlives the daemon, with its sockets and connections, and is
//! told of pods that come and go over the socket that it was started with. It reads nothing of what it carries.

mod datagram;
mod dial;
mod flows;
mod pipe;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::SocketFlags;

use super::Protocol;
use super::wire::{self, Forward, Reply, Request};
use crate::store::PodId;

use datagram::{DATAGRAM_BYTES, Ends, Flow};
use flows::Flows;
use pipe::Progress;
use stream::{Accepted, Connection};

/// Events taken from the kernel at a time.
const BATCH: usize = 64;
/// UDP flows at a time, of all pods: with more, others make room.
const FLOWS_LIMIT: usize = 8192;
/// Clients taken in from one listener before others have their turn.
const ACCEPT_ROUNDS: usize = 32;
/// For descriptors to become free.
const FULL_PAUSE: Duration = Duration::from_millis(200);
/// Lines about connections that were not carried, in the life of the process.
const TOLD_LIMIT: u32 = 100;
/// Between two looks at idle flows, while there are flows.
const SWEEP: Duration = Duration::from_secs(10);

/// What has become ready.
#[derive(Debug, Clone, Copy)]
enum Source {
    Door,
    Daemon(u64),
    Listener(u64),
    Connection(u64),
    Flow(u64),
}

#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    forward: Forward,
    /// Flows of a UDP socket.
    flows: BTreeMap<Ends, u64>,
}

/// See the module.
struct Forwarder {
    epoll: OwnedFd,
    door: OwnedFd,
    next: u64,
    sources: BTreeMap<u64, Source>,
    daemons: BTreeMap<u64, OwnedFd>,
    listeners: BTreeMap<u64, Listener>,
    /// With their pods, and as pieces that move behind a pointer.
    connections: BTreeMap<u64, (PodId, Box<Connection>)>,
    flows: Flows,
    /// Connections that had more to do.
    yielded: VecDeque<u64>,
    /// Listeners that rest until descriptors are free.
    resting: BTreeSet<u64>,
    swept: Instant,
    /// Connections whose failure was told.
    told: u32,
    buffer: Vec<u8>,
}

/// Serves until it is ended by a signal. `door` is a listening socket at which daemons knock.
pub fn run(door: OwnedFd) -> io::Result<()> {
    let descriptors = raise_descriptor_limit();
    let mut forwarder = Forwarder {
        epoll: epoll::create(CreateFlags::CLOEXEC)?,
        door,
        next: 0,
        sources: BTreeMap::new(),
        daemons: BTreeMap::new(),
        listeners: BTreeMap::new(),
        connections: BTreeMap::new(),
        // Streams need some too.
        flows: Flows::new(FLOWS_LIMIT.min(descriptors / 2)),
        yielded: VecDeque::new(),
        resting: BTreeSet::new(),
        swept: Instant::now(),
        told: 0,
        buffer: vec![0; DATAGRAM_BYTES],
    };
    let door = forwarder.door.try_clone()?;
    forwarder.watch(door.as_fd(), Source::Door, EventFlags::IN)?;
    loop {
        for source in forwarder.wait()? {
            forwarder.on(source);
        }
        forwarder.go_on();
    }
}

/// Six descriptors a connection: as many as we may have, which is answered.
fn raise_descriptor_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize)
}

impl Forwarder {
    fn watch(&mut self, fd: BorrowedFd<'_>, source: Source, flags: EventFlags) -> io::Result<u64> {
        self.next += 1;
        epoll::add(&self.epoll, fd, EventData::new_u64(self.next), flags)?;
        self.sources.insert(self.next, source);
        Ok(self.next)
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let timeout = match (self.yielded.is_empty(), self.resting.is_empty(), self.flows.is_empty()) {
            (false, _, _) => Some(Duration::ZERO),
            (true, false, _) => Some(FULL_PAUSE),
            (true, true, false) => Some(SWEEP),
            (true, true, true) => None,
        };
        let timeout = timeout.map(|d| Timespec { tv_sec: d.as_secs() as i64, tv_nsec: i64::from(d.subsec_nanos()) });
        let mut events = Vec::with_capacity(BATCH);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(events.iter().filter_map(|event| self.sources.get(&event.data.u64()).copied()).collect())
    }

    fn on(&mut self, source: Source) {
        match source {
            Source::Door => self.on_door(),
            Source::Daemon(id) => self.on_daemon(id),
            Source::Listener(id) => self.on_listener(id),
            Source::Connection(id) => self.pump(id),
            Source::Flow(id) => self.on_flow(id),
        }
    }

    /// What is not an event: work left over, rest that is over, flows that are idle.
    fn go_on(&mut self) {
        for id in std::mem::take(&mut self.yielded) {
            self.pump(id);
        }
        for id in std::mem::take(&mut self.resting) {
            self.on_listener(id);
        }
        let now = Instant::now();
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.flows.idle(now).into_iter().for_each(|id| self.forget_flow(id));
        }
    }

    fn on_door(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(daemon) = rustix::net::accept_with(&self.door, flags) else { return };
        let ours = rustix::net::sockopt::socket_peercred(&daemon);
        if ours.is_ok_and(|peer| peer.uid == rustix::process::geteuid())
            && let Ok(id) = self.watch(daemon.as_fd(), Source::Daemon(self.next + 1), EventFlags::IN)
        {
            self.daemons.insert(id, daemon);
        }
    }

    fn on_daemon(&mut self, id: u64) {
        let Some(daemon) = self.daemons.remove(&id) else { return };
        let received = wire::receive::<Request>(&daemon);
        let reply = match received {
            Ok(Some((request, sockets))) => self.answer(request, sockets),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Ok(None) | Err(_) => {
                self.sources.remove(&id);
                return;
            }
        };
        let reply = reply.unwrap_or_else(|e| Some(Reply { error: Some(e.to_string()), ..Reply::default() }));
        if reply.is_none_or(|reply| wire::send(&daemon, &reply, &[]).is_ok()) {
            self.daemons.insert(id, daemon);
        }
    }

    fn answer(&mut self, request: Request, sockets: Vec<OwnedFd>) -> io::Result<Option<Reply>> {
        let mut reply = Reply::default();
        match request {
            Request::List => {
                let pods: BTreeSet<PodId> = self.listeners.values().map(|l| l.forward.pod.clone()).collect();
                reply.pods = pods.into_iter().collect();
            }
            Request::Add(forward) => {
                for socket in sockets {
                    self.listen(socket, forward.clone())?;
                }
            }
            Request::Remove { pod } => self.remove(&pod),
        }
        Ok(Some(reply))
    }

    fn listen(&mut self, socket: OwnedFd, forward: Forward) -> io::Result<()> {
        if forward.protocol == Protocol::Udp {
            datagram::tell_destinations(&socket)?;
        }
        let id = self.watch(socket.as_fd(), Source::Listener(self.next + 1), EventFlags::IN)?;
        self.listeners.insert(id, Listener { socket, forward, flows: BTreeMap::new() });
        Ok(())
    }

    fn remove(&mut self, pod: &PodId) {
        let of_pod = |(id, listener): (&u64, &Listener)| (listener.forward.pod == *pod).then_some(*id);
        let listeners: Vec<u64> = self.listeners.iter().filter_map(of_pod).collect();
        for id in listeners {
            self.sources.remove(&id);
            let flows: Vec<u64> = self.listeners.remove(&id).into_iter().flat_map(|l| l.flows.into_values()).collect();
            flows.into_iter().for_each(|flow| self.forget_flow(flow));
        }
        let connections: Vec<u64> =
            self.connections.iter().filter(|(_, (owner, _))| owner == pod).map(|(id, _)| *id).collect();
        for id in connections {
            self.forget_connection(id, true);
        }
    }

    fn on_listener(&mut self, id: u64) {
        match self.listeners.get(&id).map(|listener| listener.forward.protocol) {
            Some(Protocol::Udp) => self.take_datagrams(id),
            Some(_) => self.take_in(id),
            None => {}
        }
    }

    fn take_in(&mut self, id: u64) {
        for _ in 0..ACCEPT_ROUNDS {
            let Some(listener) = self.listeners.get(&id) else { return };
            let pod = listener.forward.pod.clone();
            match stream::accept(&listener.socket, &listener.forward) {
                Accepted::New(connection) => self.begin(pod, connection),
                Accepted::Refused(error) => self.tell(&pod, &error),
                Accepted::Nobody => return self.rest(id, false),
                Accepted::Full => return self.rest(id, true),
            }
        }
    }

    /// Clients decide how often this happens, so it is told a few times only.
    fn tell(&mut self, pod: &PodId, error: &io::Error) {
        if self.told < TOLD_LIMIT {
            self.told += 1;
            eprintln!("a connection to pod {} was not carried: {error}", pod.short());
        }
    }

    /// A listener that cannot take anybody in would wake us for ever.
    fn rest(&mut self, id: u64, rests: bool) {
        if rests {
            self.resting.insert(id);
        }
        let Some(listener) = self.listeners.get(&id) else { return };
        let flags = if rests { EventFlags::empty() } else { EventFlags::IN };
        let _ = epoll::modify(&self.epoll, &listener.socket, EventData::new_u64(id), flags);
    }

    fn begin(&mut self, pod: PodId, connection: Box<Connection>) {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        // Both ends bear the connection's number.
        let id = self.next + 1;
        let watched = self
            .watch(connection.client.as_fd(), Source::Connection(id), flags)
            .and_then(|_| self.watch(connection.pod.as_fd(), Source::Connection(id), flags));
        match watched {
            Ok(_) => {
                self.connections.insert(id, (pod, connection));
                self.pump(id);
            }
            Err(_) => {
                self.sources.remove(&id);
            }
        }
    }

    fn pump(&mut self, id: u64) {
        let Some((_, connection)) = self.connections.get_mut(&id) else { return };
        match connection.pump() {
            Ok(Progress::Waits) => {}
            Ok(Progress::Yields) => self.yielded.push_back(id),
            Ok(Progress::Ended) => self.forget_connection(id, false),
            Err(_) => self.forget_connection(id, true),
        }
    }

    fn forget_connection(&mut self, id: u64, by_reset: bool) {
        // The two numbers that `begin` gave.
        self.sources.remove(&id);
        self.sources.remove(&(id + 1));
        if let Some((_, connection)) = self.connections.remove(&id)
            && by_reset
        {
            connection.reset();
        }
    }

    fn take_datagrams(&mut self, id: u64) {
        for _ in 0..ACCEPT_ROUNDS {
            let Some(listener) = self.listeners.get(&id) else { return };
            let Ok(Some((length, ends))) = datagram::take(&listener.socket, &mut self.buffer) else { return };
            let known = listener.flows.get(&ends).copied();
            if let Some(flow) = known.or_else(|| self.begin_flow(id, ends))
                && let Some((_, flow)) = self.flows.get_mut(flow)
            {
                flow.inwards(&self.buffer[..length]);
            }
        }
    }

    fn begin_flow(&mut self, listener: u64, ends: Ends) -> Option<u64> {
        if self.flows.is_full()
            && let Some(other) = self.flows.dispensable()
        {
            self.forget_flow(other);
        }
        let flow = Flow::new(ends, &self.listeners.get(&listener)?.forward).ok()?;
        let id = self.watch(flow.pod.as_fd(), Source::Flow(self.next + 1), EventFlags::IN).ok()?;
        self.listeners.get_mut(&listener)?.flows.insert(ends, id);
        self.flows.insert(id, listener, flow);
        Some(id)
    }

    fn on_flow(&mut self, id: u64) {
        let Some((listener, flow)) = self.flows.get_mut(id) else { return };
        let Some(listener) = self.listeners.get(listener) else { return };
        flow.outwards(&listener.socket, &mut self.buffer);
    }

    fn forget_flow(&mut self, id: u64) {
        self.sources.remove(&id);
        let Some((listener, flow)) = self.flows.remove(id) else { return };
        if let Some(listener) = self.listeners.get_mut(&listener) {
            listener.flows.remove(&flow.ends());
        }
    }
}
