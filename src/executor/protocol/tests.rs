//! Framing over real sockets: limits, descriptors, what a hostile peer may send.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::*;
use crate::proto::supervisor as wire;

fn reply(id: u64, text: &str) -> wire::SpawnReply {
    let error = wire::Error { kind: 0, message: text.to_owned() };
    wire::SpawnReply { id, pid: 7, error: Some(error) }
}

fn receive_reply(socket: &OwnedFd) -> Result<Received<wire::SpawnReply>, ProtocolError> {
    receive(socket, &mut vec![0; MESSAGE_LIMIT])
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe")
}

fn send_raw(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).expect("sendmsg");
}

#[test]
fn a_message_and_its_descriptors_arrive_in_order_and_close_on_exec() {
    let (left, right) = pair().expect("a pair");
    let (reader, writer) = pipe();
    send(&left, &reply(5, "no"), &[reader.as_fd(), writer.as_fd()]).expect("sent");
    drop((reader, writer));
    let (message, [reader, writer]) = receive_reply(&right).expect("received").expect::<2>().expect("two");
    assert_eq!(message, reply(5, "no"));
    rustix::io::write(&writer, b"x").expect("the second is the write end");
    assert_eq!(rustix::io::read(&reader, &mut [0; 4][..]).expect("readable"), 1);
    for descriptor in [reader, writer] {
        assert!(rustix::io::fcntl_getfd(&descriptor).expect("flags").contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[test]
fn a_message_of_the_full_length_passes_and_a_longer_one_is_refused() {
    let (left, right) = pair().expect("a pair");
    let frame = reply(1, "").encoded_len();
    let longest = "x".repeat(MESSAGE_LIMIT - frame - 6);
    send(&left, &reply(1, &longest), &[]).expect("fits");
    assert_eq!(receive_reply(&right).expect("whole").message, reply(1, &longest));
    let longer = "x".repeat(MESSAGE_LIMIT);
    assert!(matches!(send(&left, &reply(1, &longer), &[]), Err(ProtocolError::TooLong(_))));
}

#[test]
fn a_datagram_that_the_kernel_cut_is_an_error() {
    let (left, right) = pair().expect("a pair");
    rustix::net::send(&left, &vec![1; MESSAGE_LIMIT + 1], SendFlags::empty()).expect("sent");
    assert!(matches!(receive_reply(&right), Err(ProtocolError::Cut)));
}

#[test]
fn surplus_descriptors_are_an_error_and_are_closed() {
    for count in [DESCRIPTOR_LIMIT + 1, DESCRIPTOR_LIMIT + 2, 40] {
        let (left, right) = pair().expect("a pair");
        let (reader, writer) = pipe();
        send_raw(&left, &encode(&reply(1, "x")).expect("bytes"), &vec![writer.as_fd(); count]);
        drop(writer);
        assert!(matches!(receive_reply(&right), Err(ProtocolError::Cut)), "{count}");
        // End of file, at once, says that no copy of the write end is left.
        assert_eq!(rustix::io::read(&reader, &mut [0; 4][..]).expect("end of file"), 0);
    }
}

#[test]
fn descriptors_that_a_message_does_not_have_are_refused_and_closed() {
    let (left, right) = pair().expect("a pair");
    let (reader, writer) = pipe();
    send(&left, &reply(1, "x"), &[writer.as_fd()]).expect("sent");
    drop(writer);
    let refused = receive_reply(&right).expect("received").expect::<0>();
    assert!(matches!(refused, Err(ProtocolError::Descriptors { expected: 0, got: 1 })));
    assert_eq!(rustix::io::read(&reader, &mut [0; 4][..]).expect("end of file"), 0);
}

#[test]
fn the_end_of_a_connection_and_an_empty_socket_are_told_apart() {
    let (left, right) = pair().expect("a pair");
    set_nonblocking(&right, true).expect("nonblocking");
    assert!(matches!(receive_reply(&right), Err(ProtocolError::NotReady)));
    drop(left);
    assert!(matches!(receive_reply(&right), Err(ProtocolError::Closed)));
    assert!(matches!(send(&right, &reply(1, "x"), &[]), Err(ProtocolError::Closed)));
    assert!(matches!(encode(&wire::Done::default()), Err(ProtocolError::Empty)));
}

#[test]
fn bytes_that_are_no_message_are_malformed() {
    let (left, right) = pair().expect("a pair");
    rustix::net::send(&left, &[0xff; 32], SendFlags::empty()).expect("sent");
    assert!(matches!(receive_reply(&right), Err(ProtocolError::Malformed(_))));
}

#[test]
fn an_outbox_keeps_order_while_the_peer_does_not_read() {
    let (left, right) = pair().expect("a pair");
    set_nonblocking(&left, true).expect("nonblocking");
    let text = "x".repeat(4000);
    let mut outbox = Outbox::default();
    let mut sent = 0;
    while !outbox.wants_write() || sent < 100 {
        outbox.send(&left, &reply(sent, &text), Vec::new()).expect("kept");
        sent += 1;
    }
    for id in 0..sent {
        assert_eq!(receive_reply(&right).expect("in order").message.id, id);
        outbox.flush(&left).expect("flushed");
    }
    assert!(!outbox.wants_write());
}

#[test]
fn an_outbox_does_not_grow_without_end() {
    let (left, _right) = pair().expect("a pair");
    set_nonblocking(&left, true).expect("nonblocking");
    let text = "x".repeat(100_000);
    let mut outbox = Outbox::default();
    let refused = (0..100).find_map(|id| outbox.send(&left, &reply(id, &text), Vec::new()).err());
    assert!(matches!(refused, Some(ProtocolError::TooLong(_))));
}

#[test]
fn a_socket_below_a_path_longer_than_an_address_is_bound_and_reached() {
    let base = std::env::temp_dir().join(format!("cricket-protocol-{}", std::process::id()));
    let directory = base.join("d".repeat(200)).join("e".repeat(200));
    std::fs::create_dir_all(&directory).expect("directories");
    check_listener(&directory);
    std::fs::remove_dir_all(&base).expect("removed");
}

fn check_listener(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(connect(directory, SUPERVISOR_SOCKET).expect_err("nobody").kind(), io::ErrorKind::NotFound);
    let listener = listen(directory, SUPERVISOR_SOCKET).expect("bound");
    let metadata = std::fs::metadata(directory.join(SUPERVISOR_SOCKET)).expect("there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let client = connect(directory, SUPERVISOR_SOCKET).expect("connected");
    let peer = accept(&listener).expect("accepted").expect("our own user");
    assert!(rustix::fs::fcntl_getfl(&peer).expect("flags").contains(OFlags::NONBLOCK));
    send(&client, &reply(3, "hello"), &[]).expect("sent");
    assert_eq!(receive_reply(&peer).expect("received").message.id, 3);
    let refused = listen(directory, SUPERVISOR_SOCKET).expect_err("somebody listens");
    assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    drop(listener);
    let gone = connect(directory, SUPERVISOR_SOCKET).expect_err("nobody listens");
    assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
    listen(directory, SUPERVISOR_SOCKET).expect("a dead socket is replaced");
}
