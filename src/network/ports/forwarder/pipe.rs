//! One direction of a connection: bytes go from socket to socket through a pipe by splice, and never into this
//! process's memory.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::pipe::{PipeFlags, SpliceFlags};

/// Bytes asked for at a time; a pipe holds as many unless the user has very many of them.
const PIECE_BYTES: usize = 64 << 10;
/// Rounds before others have their turn.
const ROUNDS: usize = 16;

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Until one of the sockets is ready.
    Waits,
    /// There is more to do, but others are there too.
    Yields,
    /// The end was passed on.
    Ended,
}

/// See the module.
#[derive(Debug)]
pub struct Direction {
    reader: OwnedFd,
    writer: OwnedFd,
    filled: usize,
    /// The source has ended.
    ended: bool,
    /// The end was passed on.
    closed: bool,
}

impl Direction {
    /// Empty.
    pub fn new() -> std::io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { reader, writer, filled: 0, ended: false, closed: false })
    }

    /// Moves what can be moved now. An error is the end of the connection.
    pub fn pump(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Progress, Errno> {
        if self.closed {
            return Ok(Progress::Ended);
        }
        for _ in 0..ROUNDS {
            let took = !self.ended && self.fill(from)?;
            let gave = self.filled > 0 && self.drain(to)?;
            if self.ended && self.filled == 0 {
                self.closed = true;
                // The other side may be gone altogether.
                let _ = rustix::net::shutdown(to, Shutdown::Write);
                return Ok(Progress::Ended);
            }
            if !took && !gave {
                return Ok(Progress::Waits);
            }
        }
        Ok(Progress::Yields)
    }

    fn fill(&mut self, from: BorrowedFd<'_>) -> Result<bool, Errno> {
        match splice(from, &self.writer)? {
            Some(0) => self.ended = true,
            Some(count) => self.filled += count,
            None => return Ok(false),
        }
        Ok(true)
    }

    fn drain(&mut self, to: BorrowedFd<'_>) -> Result<bool, Errno> {
        match splice(&self.reader, to)? {
            Some(count) => self.filled = self.filled.saturating_sub(count),
            None => return Ok(false),
        }
        Ok(true)
    }
}

/// None: not now.
fn splice(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd) -> Result<Option<usize>, Errno> {
    match rustix::pipe::splice(from, None, to, None, PIECE_BYTES, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let far = listener.accept().expect("accepted").0;
        (near, far)
    }

    #[test]
    fn bytes_and_the_end_go_from_socket_to_socket() {
        let ((mut client, accepted), (dialled, mut server)) = (pair(), pair());
        for socket in [&accepted, &dialled] {
            socket.set_nonblocking(true).expect("a mode");
        }
        let mut direction = Direction::new().expect("a pipe");
        client.write_all(b"hello").expect("sent");
        drop(client);
        let mut progress = Progress::Waits;
        for _ in 0..1000 {
            progress = direction.pump(accepted.as_fd(), dialled.as_fd()).expect("pumped");
            if progress == Progress::Ended {
                break;
            }
            std::thread::yield_now();
        }
        assert_eq!(progress, Progress::Ended);
        let mut text = String::new();
        server.read_to_string(&mut text).expect("read to the end");
        assert_eq!(text, "hello");
    }
}
