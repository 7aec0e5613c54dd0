//! Both frame parsers against whole conversations: frames as a client writes them, some broken, cut into arbitrary
//! pieces. Every conversation has to come to its end: a parser that panics or waits for what never comes does not.
//!
//! 256 conversations each in an ordinary run; `PROPTEST_CASES=1000000 cargo test --release --lib streaming::fuzz` goes
//! on for as long as wanted, and a conversation that fails is written down by proptest.

use std::time::Duration;

use futures_util::StreamExt;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::spdy::frame;
use super::spdy::headers::HeaderWriter;
use super::spdy::{Connection, IncomingStream};
use super::websocket::{self, Protocol};

/// A conversation that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes under way between the two ends.
const PIPE_BYTES: usize = 4096;
/// Streams that may live at once.
const STREAMS: usize = 8;

/// What a client of SPDY does.
#[derive(Debug, Clone)]
enum Step {
    Open { stream: u32, fin: bool, headers: Vec<(String, String)> },
    Data { stream: u32, fin: bool, bytes: Vec<u8> },
    Control { kind: u16, flags: u8, body: Vec<u8> },
    Raw(Vec<u8>),
}

/// Changes made to the bytes before they are sent: a place (modulo the length), and what is put there.
type Damage = Vec<(usize, u8)>;

fn step() -> impl Strategy<Value = Step> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    let name = "[a-zA-Z:-]{0,12}";
    prop_oneof![
        4 => (0..12u32, any::<bool>(), proptest::collection::vec((name, "[ -~]{0,20}"), 0..6))
            .prop_map(|(stream, fin, headers)| Step::Open { stream, fin, headers }),
        4 => (0..12u32, any::<bool>(), bytes()).prop_map(|(stream, fin, bytes)| Step::Data { stream, fin, bytes }),
        2 => (0..12u16, any::<u8>(), bytes()).prop_map(|(kind, flags, body)| Step::Control { kind, flags, body }),
        1 => bytes().prop_map(Step::Raw),
    ]
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80, 3];
    bytes.extend(kind.to_be_bytes());
    bytes.extend((u32::from(flags) << 24 | body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn written(steps: Vec<Step>) -> Vec<u8> {
    let mut writer = HeaderWriter::default();
    let mut all = Vec::new();
    for step in steps {
        match step {
            Step::Open { stream, fin, headers } => {
                let mut body = stream.to_be_bytes().to_vec();
                body.extend([0; 6]);
                body.extend(writer.write(&headers));
                all.extend(control(1, u8::from(fin), &body));
            }
            Step::Data { stream, fin, bytes } => {
                all.extend(frame::data_head(stream, fin, bytes.len()));
                all.extend(bytes);
            }
            Step::Control { kind, flags, body } => all.extend(control(kind, flags, &body)),
            Step::Raw(bytes) => all.extend(bytes),
        }
    }
    all
}

fn damaged(mut bytes: Vec<u8>, damage: Damage) -> Vec<u8> {
    let length = bytes.len();
    for (at, value) in damage.into_iter().filter(|_| length > 0) {
        bytes[at % length] = value;
    }
    bytes
}

/// Runs `talk` to its end, or fails.
fn within(talk: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(PATIENCE, talk).await.expect("the conversation ends") });
}

/// Sends everything in pieces of `piece` bytes, takes whatever comes back, and hangs up.
async fn client(io: tokio::io::DuplexStream, bytes: Vec<u8>, piece: usize) {
    let (mut reader, mut writer) = tokio::io::split(io);
    let taking = tokio::spawn(async move {
        let mut ignored = Vec::new();
        let _ = reader.read_to_end(&mut ignored).await;
    });
    for piece in bytes.chunks(piece) {
        if writer.write_all(piece).await.is_err() {
            break;
        }
    }
    let _ = writer.shutdown().await;
    taking.await.expect("the answers are taken");
}

/// Reads a stream to its end and sends back nothing, or gives it up, by turns.
async fn serve(stream: IncomingStream) {
    let give_up = stream.id.is_multiple_of(3);
    let Some((mut receiver, sink)) = stream.accept().await else { return };
    if give_up {
        return sink.reset().await;
    }
    while receiver.recv().await.is_some() {}
}

async fn converse(bytes: Vec<u8>, piece: usize) {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let sending = tokio::spawn(client(theirs, bytes, piece));
    let mut connection = Connection::start(ours, STREAMS);
    let closed = connection.closed();
    while let Some(stream) = connection.accept().await {
        tokio::spawn(serve(stream));
    }
    // A reader that panicked would never say so.
    closed.cancelled().await;
    connection.close().await;
    sending.await.expect("the client's end");
}

async fn listen(bytes: Vec<u8>, piece: usize, protocol: Protocol) {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let sending = tokio::spawn(client(theirs, bytes, piece));
    let mut socket = websocket::accept(ours).await;
    while let Some(Ok(message)) = socket.next().await {
        let _ = websocket::parse(Some(protocol), message);
    }
    drop(socket);
    sending.await.expect("the client's end");
}

/// A client's frame of WebSocket: masked, of any length and kind.
fn websocket_frame(head: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![head];
    match payload.len() {
        length @ 0..126 => bytes.push(0x80 | length as u8),
        length => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::V5), Just(Protocol::V4), Just(Protocol::V4Base64), Just(Protocol::SpdyTunnel)]
}

proptest! {
    #[test]
    fn every_conversation_over_spdy_ends(
        steps in proptest::collection::vec(step(), 0..24),
        damage in proptest::collection::vec(any::<(usize, u8)>(), 0..4),
        piece in 1..600usize,
    ) {
        within(converse(damaged(written(steps), damage), piece));
    }

    #[test]
    fn every_conversation_over_websocket_ends(
        frames in proptest::collection::vec(
            (any::<u8>(), any::<[u8; 4]>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..24),
        damage in proptest::collection::vec(any::<(usize, u8)>(), 0..4),
        piece in 1..600usize,
        protocol in protocol(),
    ) {
        // Mostly whole binary messages: anything else ends the conversation at once.
        let kinds = frames.into_iter().map(|(kind, mask, payload)| (if kind < 224 { 0x82 } else { kind }, mask, payload));
        let bytes = kinds.flat_map(|(kind, mask, payload)| websocket_frame(kind, mask, &payload)).collect();
        within(listen(damaged(bytes, damage), piece, protocol));
    }
}
