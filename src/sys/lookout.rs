//! A process that stays behind in the user namespace that this one is about to leave, and looks where this one may not
//! any more: into other processes of the user (ptrace(2): a capability in their user namespace is asked for).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::Signal;

use super::{descriptors, fork, process};

/// A question is the number of a socket, an answer that and the name.
const NUMBER_BYTES: usize = size_of::<u64>();
/// A name of the kernel and a pid are shorter.
const ANSWER_LIMIT_BYTES: usize = 128;
/// It reads the descriptors of all of a user's processes.
const PATIENCE: Duration = Duration::from_secs(5);

/// The way to that process, which ends with this one.
#[derive(Debug)]
pub struct Lookout {
    socket: OwnedFd,
}

impl Lookout {
    /// Leaves it behind. The caller has one thread.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&ours, Timeout::Recv, Some(PATIENCE))?;
        fork::fork_and_run(None, || i32::from(serve(&theirs).is_err()))?;
        Ok(Self { socket: ours })
    }

    /// See [`process::with_socket`]; none also where nobody answers.
    pub fn process_with_socket(&self, inode: u64) -> Option<String> {
        let number = inode.to_ne_bytes();
        rustix::net::send(&self.socket, &number, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).ok()?;
        loop {
            let answer = receive(&self.socket).ok()??;
            // Another one is late, and answers what nobody waits for.
            if let Some(name) = answer.strip_prefix(&number) {
                return Some(String::from_utf8_lossy(name).into_owned()).filter(|name| !name.is_empty());
            }
        }
    }
}

/// One message; none when the other side is gone.
fn receive(socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut message = [0; ANSWER_LIMIT_BYTES];
    let (length, _) = rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut message[..], RecvFlags::empty()))?;
    Ok((length > 0).then(|| message[..length].to_vec()))
}

/// Holds nothing of the process that left it but the socket: no lock, no listener.
fn serve(socket: &OwnedFd) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    descriptors::close_all_except(&[socket.as_raw_fd()])?;
    rustix::thread::set_name(c"cricket-lookout")?;
    answer_all(socket)
}

/// Until whoever asks is gone.
fn answer_all(socket: &OwnedFd) -> io::Result<()> {
    while let Some(question) = receive(socket)? {
        let Ok(number) = <[u8; NUMBER_BYTES]>::try_from(question.as_slice()) else { continue };
        let name = process::with_socket(u64::from_ne_bytes(number)).unwrap_or_default();
        let mut answer = [number.as_slice(), name.as_bytes()].concat();
        answer.truncate(ANSWER_LIMIT_BYTES);
        rustix::net::send(socket, &answer, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn it_names_who_has_a_socket_and_is_asked_again() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let inode = std::fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("open").ino();
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("a pair");
        // A late answer to somebody before.
        rustix::net::send(&theirs, &[0; NUMBER_BYTES], SendFlags::empty()).expect("sent");
        let thread = std::thread::spawn(move || answer_all(&theirs));
        let lookout = Lookout { socket: ours };
        let name = lookout.process_with_socket(inode).expect("found");
        assert!(name.ends_with(&format!("(pid {})", std::process::id())), "{name}");
        assert_eq!(lookout.process_with_socket(u64::MAX), None);
        drop(lookout);
        thread.join().expect("no panic").expect("ended with the one who asks");
    }
}
