//! The scribe's own side: what it is told, what it does, what it answers. Both ends are one program, so neither side of
//! the messages has a version.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use prost::Message;
use rustix::net::{RecvFlags, SendFlags};

use super::super::LogError;
use super::super::file::{LogFile, LogPath, Unwritten};
use crate::sys::pages::Pages;

/// Two paths, and a little beside them.
const MESSAGE_BYTES_MAX: usize = 3 * 4096;

/// What a log is to have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Opened, again if it is open.
    Open = 0,
    /// The lines on the board appended.
    Append = 1,
    /// Closed.
    Close = 2,
}

/// See the module.
#[derive(Clone, PartialEq, Message)]
pub struct Order {
    #[prost(uint64, tag = "1")]
    pub log: u64,
    #[prost(enumeration = "Kind", tag = "2")]
    pub kind: i32,
    #[prost(uint64, tag = "3")]
    pub length: u64,
    #[prost(bytes = "vec", tag = "4")]
    pub directory: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    pub name: Vec<u8>,
}

/// See the module.
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    /// Bytes in the file.
    #[prost(uint64, tag = "1")]
    pub written: u64,
    /// Zero: it is done.
    #[prost(uint32, tag = "2")]
    pub fault: u32,
    /// The kernel's number, where the fault is its.
    #[prost(int32, tag = "3")]
    pub errno: i32,
    /// Which log it is about; never zero, for a message without a field has no bytes and would say that the other end
    /// closed.
    #[prost(uint64, tag = "4")]
    pub log: u64,
}

/// `Answer::fault`.
const NO_FAULT: u32 = 0;
const KERNELS: u32 = 1;
const SYMBOLIC_LINK: u32 = 2;
const NOT_A_FILE: u32 = 3;

impl Answer {
    fn of(source: &io::Error, written: usize) -> Self {
        Self { written: written as u64, fault: KERNELS, errno: source.raw_os_error().unwrap_or(libc::EIO), log: 0 }
    }

    /// To lines.
    pub fn of_append(&self) -> Result<(), Unwritten> {
        let source = || io::Error::from_raw_os_error(self.errno);
        match self.fault {
            NO_FAULT => Ok(()),
            _ => Err(Unwritten { written: self.written as usize, source: source(), is_pending: false }),
        }
    }

    /// To a path.
    pub fn of_open(&self, path: &LogPath) -> Result<(), LogError> {
        let path = path.full();
        match self.fault {
            NO_FAULT => Ok(()),
            SYMBOLIC_LINK => Err(LogError::SymbolicLink(path)),
            NOT_A_FILE => Err(LogError::NotAFile(path)),
            _ => Err(LogError::Open { path, source: io::Error::from_raw_os_error(self.errno) }),
        }
    }
}

/// Does what it is told until nobody is there to tell it. Answers the exit code.
pub fn serve(socket: &OwnedFd, board: &Pages) -> i32 {
    let mut logs = BTreeMap::new();
    while let Ok(Some(order)) = receive::<Order>(socket) {
        let log = order.log;
        let answer = Answer { log, ..obey(&mut logs, order, board) };
        if send(socket, &answer).is_err() {
            break;
        }
    }
    0
}

fn obey(logs: &mut BTreeMap<u64, LogFile>, order: Order, board: &[u8]) -> Answer {
    match order.kind() {
        Kind::Open => open(logs, order),
        Kind::Append => match (logs.get_mut(&order.log), board.get(..order.length as usize)) {
            (Some(log), Some(lines)) => match log.append(lines) {
                Ok(()) => Answer { written: order.length, ..Answer::default() },
                Err(unwritten) => Answer::of(&unwritten.source, unwritten.written),
            },
            _ => Answer::of(&io::Error::from_raw_os_error(libc::EBADF), 0),
        },
        Kind::Close => {
            logs.remove(&order.log);
            Answer::default()
        }
    }
}

fn open(logs: &mut BTreeMap<u64, LogFile>, order: Order) -> Answer {
    let path = |bytes| PathBuf::from(OsString::from_vec(bytes));
    let opened = match logs.get_mut(&order.log) {
        Some(log) => log.reopen(),
        None => LogFile::open(LogPath::of_parts(path(order.directory), path(order.name))).map(|log| {
            logs.insert(order.log, log);
        }),
    };
    match opened {
        Ok(()) => Answer::default(),
        Err(LogError::SymbolicLink(_)) => Answer { fault: SYMBOLIC_LINK, ..Answer::default() },
        Err(LogError::NotAFile(_)) => Answer { fault: NOT_A_FILE, ..Answer::default() },
        Err(LogError::Open { source, .. } | LogError::Client(source)) => Answer::of(&source, 0),
        Err(_) => Answer::of(&io::Error::from_raw_os_error(libc::EINVAL), 0),
    }
}

/// Sends a message; both ends take them at once.
pub fn send(socket: &OwnedFd, message: &impl Message) -> io::Result<()> {
    let bytes = message.encode_to_vec();
    let sent = rustix::io::retry_on_intr(|| rustix::net::send(socket.as_fd(), &bytes, SendFlags::NOSIGNAL))?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Waits for a message; `None`: the other end is closed.
pub fn receive<M: Message + Default>(socket: &OwnedFd) -> io::Result<Option<M>> {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let received = rustix::io::retry_on_intr(|| rustix::net::recv(socket.as_fd(), &mut buffer, RecvFlags::empty()));
    match received? {
        (_, 0) => Ok(None),
        (_, length) if length > buffer.len() => Err(io::ErrorKind::InvalidData.into()),
        (_, length) => Ok(Some(M::decode(&buffer[..length]).map_err(io::Error::other)?)),
    }
}
