//! Remotecommand: the streams of one process (exec) or container (attach) over SPDY streams or WebSocket channels.
//!
//! When the process has ended its output is still sent to the end; what children of it write later is waited for
//! only while it flows ([`QUIET`]). Then the status is sent, and the connection closed. A client that goes away
//! ends the session: an exec's process is killed, an attached container goes on.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::pod::session::{ExitStatus, Session, SessionError, Sessions, TerminalSize};

use super::chunks::{self, ChunkReceiver, ChunkSink};
use super::descriptor::Descriptor;
use super::spdy::{self, Connection, StreamSink};
use super::token::Ticket;
use super::websocket::{self, Channel, Incoming, Protocol};
use super::{CHUNKS_WAITING, STREAMS_TIMEOUT};

/// What is offered over SPDY, best first.
pub const SPDY_PROTOCOLS: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// Streams of one session: error, stdin, stdout, stderr, resize, each counted for both of its halves, and the table's.
const STREAM_COUNT_LIMIT: usize = 16;

/// After the end of the process: how long its output may be silent before it is taken to be over.
const QUIET: Duration = Duration::from_millis(500);

/// For a client that does not read the end of its session.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Which streams a ticket asks for.
#[derive(Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn of(ticket: &Ticket) -> Self {
        let (stdin, stdout, stderr, tty) = match ticket {
            Ticket::Exec(r) => (r.stdin, r.stdout, r.stderr, r.tty),
            Ticket::Attach(r) => (r.stdin, r.stdout, r.stderr, r.tty),
            Ticket::PortForward { .. } => (false, false, false, false),
        };
        Self { stdin, stdout, stderr: stderr && !tty, tty }
    }
}

/// The client's side, whatever the transport.
struct Client<S> {
    stdin: Option<ChunkReceiver>,
    stdout: Option<S>,
    stderr: Option<S>,
    error: S,
    resize: Option<mpsc::Receiver<TerminalSize>>,
    /// The error channel carries a JSON status.
    has_status: bool,
    gone: CancellationToken,
}

async fn begin(ticket: Ticket, sessions: &dyn Sessions) -> Result<Session, SessionError> {
    match ticket {
        Ticket::Exec(request) => sessions.exec(request).await,
        Ticket::Attach(request) => sessions.attach(request).await,
        Ticket::PortForward { .. } => {
            Err(SessionError { not_found: true, message: "no command was asked for".to_owned() })
        }
    }
}

/// Runs the session of `ticket` for a client that has opened all of its streams.
async fn serve<S: ChunkSink>(mut client: Client<S>, ticket: Ticket, sessions: &dyn Sessions) {
    let gone = client.gone.clone();
    let outcome = tokio::select! {
        outcome = relay(&mut client, ticket, sessions) => outcome,
        () = gone.cancelled() => return,
    };
    let status = status(&outcome, client.has_status);
    if !status.is_empty() {
        client.error.send(Bytes::from(status)).await;
    }
    client.error.finish().await;
}

async fn relay<S: ChunkSink>(
    client: &mut Client<S>,
    ticket: Ticket,
    sessions: &dyn Sessions,
) -> Result<Option<ExitStatus>, SessionError> {
    let mut session = begin(ticket, sessions).await?;
    let failed = |e: std::io::Error| SessionError { not_found: false, message: format!("session streams: {e}") };
    let terminal = session.terminal.take().map(Descriptor::new).transpose().map_err(failed)?;
    let open = |fd: Option<_>| fd.map(Descriptor::new).transpose().map_err(failed);
    let stdin = open(session.stdin.take())?.or_else(|| terminal.clone());
    let stdout = open(session.stdout.take())?.or(terminal);
    let stderr = open(session.stderr.take())?;

    let ended = CancellationToken::new();
    let mut inputs = JoinSet::new();
    if let (Some(source), Some(target)) = (client.stdin.take(), stdin) {
        inputs.spawn(chunks::pump_in(source, target));
    }
    let mut outputs = JoinSet::new();
    for (source, sink) in [(stdout, client.stdout.take()), (stderr, client.stderr.take())] {
        if let (Some(source), Some(sink)) = (source, sink) {
            outputs.spawn(output(source, sink, ended.clone()));
        }
    }
    let mut resize = client.resize.take();
    let mut exit = session.exit;
    let status = loop {
        tokio::select! {
            status = &mut exit => break status,
            Some(size) = next_size(&mut resize) => (session.resize)(size),
        }
    };
    ended.cancel();
    while outputs.join_next().await.is_some() {}
    Ok(status)
}

async fn next_size(resize: &mut Option<mpsc::Receiver<TerminalSize>>) -> Option<TerminalSize> {
    match resize {
        Some(sizes) => sizes.recv().await,
        None => None,
    }
}

/// Copies until the end, or until the process has ended and nothing has flowed for [`QUIET`].
async fn output<S: ChunkSink>(source: Descriptor, mut sink: S, ended: CancellationToken) {
    use tokio::io::AsyncReadExt;
    let mut source = source;
    let mut buffer = vec![0; super::CHUNK_BYTES];
    loop {
        let count = tokio::select! {
            biased;
            read = source.read(&mut buffer) => read.unwrap_or(0),
            () = quiet(&ended) => 0,
        };
        if count == 0 || !sink.send(Bytes::copy_from_slice(&buffer[..count])).await {
            break;
        }
    }
    sink.finish().await;
}

async fn quiet(ended: &CancellationToken) {
    ended.cancelled().await;
    tokio::time::sleep(QUIET).await;
}

/// What the error channel says at the end.
fn status(outcome: &Result<Option<ExitStatus>, SessionError>, as_json: bool) -> String {
    let failure = match outcome {
        Ok(None | Some(ExitStatus { code: 0 })) => None,
        Ok(Some(ExitStatus { code })) => {
            Some((format!("command terminated with non-zero exit code: {code}"), Some(code)))
        }
        Err(error) => Some((error.message.clone(), None)),
    };
    let value = match (failure, as_json) {
        (None, false) => return String::new(),
        (Some((message, _)), false) => return message,
        (None, true) => json!({"metadata": {}, "status": "Success"}),
        (Some((message, Some(code))), true) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": message,
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        (Some((message, None)), true) => {
            let (reason, code) = match outcome {
                Err(SessionError { not_found: true, .. }) => ("NotFound", 404),
                _ => ("InternalError", 500),
            };
            json!({"metadata": {}, "status": "Failure", "reason": reason, "message": message, "code": code})
        }
    };
    value.to_string()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Parses what a resize channel carries: JSON values one after the other; returns how many bytes are done with.
fn sizes(bytes: &[u8]) -> (Vec<TerminalSize>, usize) {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Size>();
    let mut sizes = Vec::new();
    while let Some(Ok(size)) = values.next() {
        sizes.push(TerminalSize { width: size.width, height: size.height });
    }
    (sizes, values.byte_offset())
}

/// Bytes of a size that has not arrived whole.
const SIZE_LIMIT_BYTES: usize = 256;

async fn parse_sizes(mut chunks: ChunkReceiver, sender: mpsc::Sender<TerminalSize>) {
    let mut pending = Vec::new();
    while let Some(chunk) = chunks.recv().await {
        pending.extend_from_slice(&chunk);
        let (sizes, done) = sizes(&pending);
        pending.drain(..done);
        if pending.len() > SIZE_LIMIT_BYTES {
            return;
        }
        for size in sizes {
            if sender.send(size).await.is_err() {
                return;
            }
        }
    }
}

/// Serves a SPDY client.
pub async fn over_spdy(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    protocol: Option<&'static str>,
    ticket: Ticket,
    sessions: Arc<dyn Sessions>,
) {
    let mut connection = Connection::start(io, STREAM_COUNT_LIMIT);
    let wanted = Wanted::of(&ticket);
    let version =
        SPDY_PROTOCOLS.len() - protocol.and_then(|p| SPDY_PROTOCOLS.iter().position(|s| *s == p)).unwrap_or(3);
    let streams = tokio::time::timeout(STREAMS_TIMEOUT, spdy_streams(&mut connection, wanted, version >= 3)).await;
    let Ok(Some(streams)) = streams else { return };
    let client = Client {
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
        error: streams.error,
        resize: streams.resize.map(|chunks| {
            let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
            tokio::spawn(parse_sizes(chunks, sender));
            receiver
        }),
        has_status: version >= 4,
        gone: connection.closed(),
    };
    // Streams that nobody asked for are refused while the session runs.
    let serving = serve(client, ticket, sessions.as_ref());
    let mut serving = pin!(serving);
    loop {
        tokio::select! {
            () = &mut serving => break,
            Some(stream) = connection.accept() => drop(stream),
        }
    }
    drop(streams.unused);
    connection.close().await;
}

struct SpdyStreams {
    stdin: Option<ChunkReceiver>,
    stdout: Option<StreamSink>,
    stderr: Option<StreamSink>,
    error: StreamSink,
    resize: Option<ChunkReceiver>,
    /// The other halves, which carry nothing.
    unused: Vec<StreamSink>,
}

async fn spdy_streams(connection: &mut Connection, wanted: Wanted, can_resize: bool) -> Option<SpdyStreams> {
    let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
    let mut unused = Vec::new();
    let wants_resize = wanted.tty && can_resize;
    while error.is_none()
        || (wanted.stdin && stdin.is_none())
        || (wanted.stdout && stdout.is_none())
        || (wanted.stderr && stderr.is_none())
        || (wants_resize && resize.is_none())
    {
        let stream = connection.accept().await?;
        let kind = spdy::headers::get(&stream.headers, "streamtype").unwrap_or_default().to_owned();
        let known = match kind.as_str() {
            "error" => error.is_none(),
            "stdin" => wanted.stdin && stdin.is_none(),
            "stdout" => wanted.stdout && stdout.is_none(),
            "stderr" => wanted.stderr && stderr.is_none(),
            "resize" => wants_resize && resize.is_none(),
            _ => false,
        };
        if !known {
            continue;
        }
        let (receiver, sink) = stream.accept().await?;
        match kind.as_str() {
            "error" => error = Some(sink),
            "stdout" => stdout = Some(sink),
            "stderr" => stderr = Some(sink),
            "stdin" => {
                stdin = Some(receiver);
                unused.push(sink);
            }
            _ => {
                resize = Some(receiver);
                unused.push(sink);
            }
        }
    }
    Some(SpdyStreams { stdin, stdout, stderr, error: error?, resize, unused })
}

/// Serves a WebSocket client.
pub async fn over_websocket<T>(io: T, protocol: Option<Protocol>, ticket: Ticket, sessions: Arc<dyn Sessions>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let wanted = Wanted::of(&ticket);
    let (sink, mut stream) = websocket::accept(io).await.split();
    let (outgoing, mut writing) = websocket::write_messages(sink);
    let base64 = protocol.is_some_and(Protocol::is_base64);
    let channel = |number| Channel { number, outgoing: outgoing.clone(), base64 };
    let (stdin_sender, stdin) = chunks::queue();
    let (resize_sender, resize_chunks) = chunks::queue();
    let (size_sender, resize) = mpsc::channel(CHUNKS_WAITING);
    let gone = CancellationToken::new();
    let client = Client {
        stdin: wanted.stdin.then_some(stdin),
        stdout: wanted.stdout.then(|| channel(1)),
        stderr: wanted.stderr.then(|| channel(2)),
        error: channel(3),
        resize: wanted.tty.then_some(resize),
        has_status: protocol.is_some_and(Protocol::has_status),
        gone: gone.clone(),
    };
    drop(outgoing);
    let sizes = tokio::spawn(parse_sizes(resize_chunks, size_sender));
    let reading = tokio::spawn(async move {
        let mut stdin = wanted.stdin.then_some(stdin_sender);
        while let Some(Ok(message)) = stream.next().await {
            match websocket::parse(protocol, message) {
                Incoming::Data(0, bytes) if !bytes.is_empty() => {
                    if let Some(stdin) = &stdin {
                        // The process reads no more: the bytes are dropped, resizing goes on.
                        let _ = stdin.send(bytes).await;
                    }
                }
                Incoming::Data(4, bytes) => {
                    let _ = resize_sender.send(bytes).await;
                }
                Incoming::Close(0) => stdin = None,
                Incoming::End => break,
                Incoming::Data(..) | Incoming::Close(_) | Incoming::Nothing => {}
            }
        }
        gone.cancel();
    });
    serve(client, ticket, sessions.as_ref()).await;
    if tokio::time::timeout(CLOSE_TIMEOUT, &mut writing).await.is_err() {
        writing.abort();
    }
    reading.abort();
    sizes.abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_how_it_ended() {
        let ended = |code| Ok(Some(ExitStatus { code }));
        let lost = Err(SessionError { not_found: true, message: "container x: not found".to_owned() });
        assert!(status(&ended(0), true).contains("Success"));
        assert_eq!(status(&ended(0), false), "");
        assert!(status(&ended(3), true).contains(r#"{"message":"3","reason":"ExitCode"}"#));
        assert!(status(&ended(3), false).contains("exit code: 3"));
        assert!(status(&lost, true).contains("404"));
        assert_eq!(status(&lost, false), "container x: not found");
    }

    #[test]
    fn sizes_arrive_whole_or_in_pieces() {
        let (found, done) = sizes(b"{\"Width\":80,\"Height\":24}\n{\"Width\":1");
        assert_eq!(found, [TerminalSize { width: 80, height: 24 }]);
        assert!(done >= 24);
        assert_eq!(sizes(b"rubbish").0, []);
    }
}
