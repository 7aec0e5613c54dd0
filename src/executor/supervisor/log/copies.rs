//! Copies of a container's output for who is attached.
//!
//! Output is handed to a client with one nonblocking write; its pipe is made large first. A client whose pipe is full
//! does not keep up: it is detached, and reads the end of its stream after what it got. So a copy has no holes, and
//! the container never waits.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{LogError, Stream};
use crate::executor::protocol::set_nonblocking;

/// Most clients attached to one container, both streams counted.
const CLIENT_LIMIT: usize = 64;
/// What a client may be behind, in bytes; an unprivileged process may ask for no more.
const CLIENT_PIPE: usize = 1024 * 1024;

/// See the module. Holds no memory while nobody is attached.
#[derive(Debug, Default)]
pub struct Copies {
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: Stream,
    descriptor: OwnedFd,
}

impl Copies {
    /// Adds a client of one stream.
    pub fn attach(&mut self, stream: Stream, descriptor: OwnedFd) -> Result<(), LogError> {
        self.forget_gone();
        if self.clients.len() >= CLIENT_LIMIT {
            return Err(LogError::TooManyClients(self.clients.len()));
        }
        set_nonblocking(&descriptor, true).map_err(LogError::Client)?;
        // Not a pipe, or the user has too many: then it is as large as it is.
        let _ = rustix::pipe::fcntl_setpipe_size(&descriptor, CLIENT_PIPE);
        self.clients.push(Client { stream, descriptor });
        Ok(())
    }

    /// Gives what was read to every client of the stream.
    pub fn send(&mut self, stream: Stream, output: &[u8]) {
        if !self.clients.is_empty() {
            self.clients.retain(|client| client.stream != stream || write_whole(&client.descriptor, output));
        }
    }

    /// The stream has ended: its clients read that.
    pub fn end(&mut self, stream: Stream) {
        self.clients.retain(|client| client.stream != stream);
        self.clients.shrink_to_fit();
    }

    /// Drops the clients that have closed their end; a container that says nothing would keep them for ever.
    fn forget_gone(&mut self) {
        self.clients.retain(|client| !is_gone(&client.descriptor));
    }
}

fn write_whole(descriptor: &OwnedFd, mut output: &[u8]) -> bool {
    while !output.is_empty() {
        match rustix::io::write(descriptor, output) {
            Ok(count) if count > 0 => output = &output[count..],
            Err(rustix::io::Errno::INTR) => {}
            _ => return false,
        }
    }
    true
}

fn is_gone(descriptor: &OwnedFd) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::event::poll(&mut polled, Some(&now)) {
        Ok(_) => polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL),
        Err(errno) => io::Error::from(errno).kind() != io::ErrorKind::Interrupted,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    fn pipe() -> (File, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        (File::from(reader), writer)
    }

    #[test]
    fn a_client_that_does_not_keep_up_reads_an_end_after_what_it_got_and_others_go_on() {
        let mut copies = Copies::default();
        let (mut slow, writer) = pipe();
        copies.attach(Stream::Stdout, writer).expect("attached");
        let (mut other, writer) = pipe();
        copies.attach(Stream::Stderr, writer).expect("attached");
        let chunk = vec![b'x'; 64 * 1024];
        for _ in 0..64 {
            copies.send(Stream::Stdout, &chunk);
        }
        copies.send(Stream::Stderr, b"here");
        copies.end(Stream::Stderr);
        let mut got = Vec::new();
        slow.read_to_end(&mut got).expect("ended");
        assert!(got.len() >= 64 * 1024 && got.len() < 64 * chunk.len(), "{}", got.len());
        let mut said = String::new();
        other.read_to_string(&mut said).expect("ended");
        assert_eq!(said, "here");
    }

    #[test]
    fn ten_thousand_attaches_and_cancels_leave_nothing() {
        let mut copies = Copies::default();
        for _ in 0..10_000 {
            let (reader, writer) = pipe();
            copies.attach(Stream::Stdout, writer).expect("attached");
            drop(reader);
        }
        assert!(copies.clients.len() <= 1);
    }

    #[test]
    fn more_clients_than_the_limit_are_refused() {
        let mut copies = Copies::default();
        let readers: Vec<_> = (0..CLIENT_LIMIT)
            .map(|_| {
                let (reader, writer) = pipe();
                copies.attach(Stream::Stdout, writer).expect("attached");
                reader
            })
            .collect();
        let (_reader, writer) = pipe();
        assert!(matches!(copies.attach(Stream::Stdout, writer), Err(LogError::TooManyClients(CLIENT_LIMIT))));
        drop(readers);
    }
}
