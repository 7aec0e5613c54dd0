//! Daemons that are connected: there may be several (one being replaced by the next), each asks and each hears every
//! event.

use std::os::fd::{AsFd, OwnedFd};

use super::fault::{Fault, Result};
use super::pod::Pod;
use super::reactor::{Ready, Source};
use crate::executor::protocol::{self, Outbox, ProtocolError, Received};
use crate::proto::supervisor as wire;
use crate::proto::supervisor::from_supervisor::Message;
use crate::proto::supervisor::{event, reply};

/// Daemons that may be connected at a time; a further one is turned away.
const CONNECTIONS_LIMIT: usize = 16;
/// Requests taken from one connection before others have their turn.
const REQUESTS_PER_TURN: usize = 16;

/// One daemon.
pub struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) outbox: Outbox,
}

/// Who asked, for an answer that comes later. The asker may be gone by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requester {
    /// Its connection.
    pub connection: u64,
    /// Its request.
    pub id: u64,
}

/// A good answer.
#[derive(Debug)]
pub struct Answer {
    /// What.
    pub result: reply::Result,
    /// What is passed beside it.
    pub descriptors: Vec<OwnedFd>,
}

impl Answer {
    /// Done, nothing to tell.
    pub fn empty() -> Self {
        Self::of(reply::Result::Done(wire::Done::default()))
    }

    /// Done at a time that the daemon tells its clients.
    pub fn done_at(at: i64) -> Self {
        Self::of(reply::Result::Done(wire::Done { at }))
    }

    /// Without descriptors.
    pub fn of(result: reply::Result) -> Self {
        Self { result, descriptors: Vec::new() }
    }
}

impl Pod {
    /// Takes in whoever waits at the socket.
    pub(super) fn accept(&mut self) {
        let socket = match protocol::accept(&self.listener) {
            Ok(Some(socket)) => socket,
            // Nobody after all, or not our user.
            Ok(None) | Err(_) => return,
        };
        if self.connections.len() >= CONNECTIONS_LIMIT {
            eprintln!("a daemon was turned away: {CONNECTIONS_LIMIT} are connected");
            return;
        }
        let id = self.next_connection;
        if self.reactor.watch(&socket, Source::Connection(id)).is_ok() {
            self.next_connection += 1;
            self.connections.insert(id, Connection { socket, outbox: Outbox::default() });
        }
    }

    /// Requests have come, or there is room for answers.
    pub(super) fn on_connection(&mut self, id: u64, ready: &Ready) {
        if ready.writable {
            self.flush(id);
        }
        if ready.readable {
            for _ in 0..REQUESTS_PER_TURN {
                let Some(connection) = self.connections.get(&id) else { return };
                match protocol::receive::<wire::Request>(&connection.socket, self.scratch.message()) {
                    Ok(received) => self.take(id, received),
                    Err(ProtocolError::NotReady) => return,
                    Err(error) => return self.disconnect(id, &error),
                }
            }
        }
    }

    fn take(&mut self, connection: u64, received: Received<wire::Request>) {
        let requester = Requester { connection, id: received.message.id };
        let Some(op) = received.message.op else {
            let fault = Fault::new(wire::ErrorKind::Unimplemented, "this supervisor does not know the request");
            return self.answer(requester, Err(fault));
        };
        match self.handle(requester, op, received.descriptors) {
            Ok(None) => {}
            Ok(Some(answer)) => self.answer(requester, Ok(answer)),
            Err(fault) => self.answer(requester, Err(fault)),
        }
    }

    /// Answers a request; nothing happens when the asker is gone.
    pub(super) fn answer(&mut self, requester: Requester, result: Result<Answer>) {
        let (result, descriptors) = match result {
            Ok(answer) => (answer.result, answer.descriptors),
            Err(fault) => (reply::Result::Error(fault.into()), Vec::new()),
        };
        let reply = wire::Reply { id: requester.id, result: Some(result) };
        self.send(requester.connection, &wire::FromSupervisor { message: Some(Message::Reply(reply)) }, descriptors);
    }

    /// Tells every daemon.
    pub(super) fn tell(&mut self, event: event::Event) {
        let message = wire::FromSupervisor { message: Some(Message::Event(wire::Event { event: Some(event) })) };
        let everybody: Vec<u64> = self.connections.keys().copied().collect();
        for id in everybody {
            self.send(id, &message, Vec::new());
        }
    }

    fn send(&mut self, id: u64, message: &wire::FromSupervisor, descriptors: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.outbox.send(&connection.socket, message, descriptors) {
            Ok(()) => self.set_interest(id),
            Err(error) => self.disconnect(id, &error),
        }
    }

    fn flush(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.outbox.flush(&connection.socket) {
            Ok(()) => self.set_interest(id),
            Err(error) => self.disconnect(id, &error),
        }
    }

    fn set_interest(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        let source = Source::Connection(id);
        // Who does not take its answers is not asked for more.
        let waiting = connection.outbox.wants_write();
        if self.reactor.interest(connection.socket.as_fd(), &source, !waiting, waiting).is_err() {
            self.connections.remove(&id);
        }
    }

    fn disconnect(&mut self, id: u64, why: &ProtocolError) {
        if let Some(connection) = self.connections.remove(&id) {
            self.reactor.forget(&connection.socket, &Source::Connection(id));
            if !matches!(why, ProtocolError::Closed) {
                eprintln!("a daemon's connection was closed: {why}");
            }
        }
    }
}
