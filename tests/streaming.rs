//! The streaming server over real sockets, with processes of the test's own behind it: what a client that keeps to
//! the protocols gets, and what one that does not.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cricket::pod::session::{
    AttachRequest, ExecRequest, ExitStatus, Session, SessionError, SessionFuture, Sessions, TerminalSize,
};
use cricket::streaming::Server;
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, handshake};

/// RFC 6455, section 7.4.1.
const NORMAL_CLOSURE: u16 = 1000;

/// Runs commands on the machine itself.
struct LocalProcesses {
    echo_port: u16,
}

impl Sessions for LocalProcesses {
    fn exec(&self, request: ExecRequest) -> SessionFuture<'_, Session> {
        Box::pin(async move {
            let mut child = Command::new(&request.command[0])
                .args(&request.command[1..])
                .stdin(if request.stdin { Stdio::piped() } else { Stdio::null() })
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|e| SessionError { not_found: false, message: e.to_string() })?;
            Ok(Session {
                stdin: child.stdin.take().map(OwnedFd::from),
                stdout: child.stdout.take().map(OwnedFd::from),
                stderr: child.stderr.take().map(OwnedFd::from),
                terminal: None,
                exit: Box::pin(async move {
                    let status = tokio::task::spawn_blocking(move || child.wait()).await.ok()?.ok()?;
                    Some(ExitStatus { code: status.code()? })
                }),
                resize: Box::new(|_: TerminalSize| ()),
            })
        })
    }

    fn attach(&self, _request: AttachRequest) -> SessionFuture<'_, Session> {
        Box::pin(async { Err(SessionError { not_found: true, message: "container x: not found".to_owned() }) })
    }

    fn port_forward(&self, _pod_id: String, port: u16) -> SessionFuture<'_, OwnedFd> {
        let echo_port = self.echo_port;
        Box::pin(async move {
            if port != 80 {
                return Err(SessionError { not_found: false, message: "connection refused".to_owned() });
            }
            let socket = TcpStream::connect(("127.0.0.1", echo_port));
            socket.map(OwnedFd::from).map_err(|e| SessionError { not_found: false, message: e.to_string() })
        })
    }
}

fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = connection.try_clone().expect("cloned");
                let _ = std::io::copy(&mut reader, &mut &connection);
                let _ = connection.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    port
}

fn server() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    Server::start(vec![listener], Arc::new(LocalProcesses { echo_port: echo_server() })).expect("a server")
}

fn shell(script: &str, stdin: bool) -> ExecRequest {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    ExecRequest { container_id: "c".to_owned(), command, tty: false, stdin, stdout: true, stderr: true }
}

async fn websocket(url: &str, protocol: &str) -> WebSocketStream<tokio::net::TcpStream> {
    let mut request = url.replace("http://", "ws://").into_client_request().expect("a request");
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().expect("a header"));
    let authority = request.uri().authority().expect("an authority").to_string();
    let socket = tokio::net::TcpStream::connect(authority).await.expect("connected");
    tokio_tungstenite::client_async(request, socket).await.expect("upgraded").0
}

/// Everything that arrives on each channel until the server closes.
async fn channels(mut socket: WebSocketStream<tokio::net::TcpStream>) -> [Vec<u8>; 4] {
    let mut received: [Vec<u8>; 4] = Default::default();
    let mut end = None;
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) => received[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Message::Close(frame) => end = frame.map(|frame| u16::from(frame.code)),
            _ => {}
        }
    }
    assert_eq!(end, Some(NORMAL_CLOSURE), "clients take any other end for a broken connection");
    received
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it ends in time")
}

#[tokio::test]
async fn exec_over_websocket_v5_carries_three_streams_half_close_and_the_exit_code() {
    let server = server();
    let url = server.exec(shell("cat; echo trouble >&2; exit 3", true)).expect("a url");
    let mut socket = websocket(&url, "v5.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0hello"[..].into())).await.expect("sent");
    socket.send(Message::Binary(b"\xff\0"[..].into())).await.expect("sent");
    let [_, stdout, stderr, status] = within(channels(socket)).await;
    assert_eq!(stdout, b"hello");
    assert_eq!(stderr, b"trouble\n");
    let status: serde_json::Value = serde_json::from_slice(&status).expect("a status");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
}

#[tokio::test]
async fn a_gigabyte_arrives_bit_for_bit() {
    let server = server();
    let url = server.exec(shell("head -c 1000000000 /dev/zero", false)).expect("a url");
    let mut socket = websocket(&url, "v4.channel.k8s.io").await;
    let mut received = 0;
    let mut status = Vec::new();
    while let Some(Ok(message)) = within(socket.next()).await {
        match message {
            Message::Binary(bytes) if bytes[0] == 1 => {
                assert!(bytes[1..].iter().all(|b| *b == 0));
                received += bytes.len() - 1;
            }
            Message::Binary(bytes) if bytes[0] == 3 => status.extend_from_slice(&bytes[1..]),
            _ => {}
        }
    }
    assert_eq!(received, 1_000_000_000);
    assert!(String::from_utf8_lossy(&status).contains("Success"));
}

#[tokio::test]
async fn an_exec_ends_although_a_child_of_it_holds_its_output() {
    let server = server();
    let url = server.exec(shell("sleep 30 & echo done", false)).expect("a url");
    let socket = websocket(&url, "v4.channel.k8s.io").await;
    let [_, stdout, _, _] =
        tokio::time::timeout(Duration::from_secs(20), channels(socket)).await.expect("before the child");
    assert_eq!(stdout, b"done\n");
}

#[tokio::test]
async fn a_token_is_good_for_one_session_and_one_kind() {
    let server = server();
    let url = server.exec(shell("true", false)).expect("a url");
    let status = |url: String, extra: &'static str| async move {
        tokio::task::spawn_blocking(move || plain_request(&url, extra)).await.expect("asked")
    };
    assert!(status(url.clone(), "Origin: http://evil\r\n").await.contains("403"));
    assert!(status(url.replace("exec", "attach"), "").await.contains("404"));
    assert!(status(url.clone(), "").await.contains("404"), "the mismatch spent it");
    assert!(status(format!("{url}x"), "").await.contains("404"));
}

/// The status line that a SPDY upgrade gets.
fn plain_request(url: &str, extra: &str) -> String {
    let rest = url.strip_prefix("http://").expect("http");
    let (authority, path) = rest.split_once('/').expect("a path");
    let mut socket = TcpStream::connect(authority).expect("connected");
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{extra}\r\n"
    );
    socket.write_all(request.as_bytes()).expect("sent");
    let mut head = [0; 64];
    let count = socket.read(&mut head).expect("answered");
    String::from_utf8_lossy(&head[..count]).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn malformed_frames_end_their_connection_and_no_other() {
    let server = server();
    let good = server.exec(shell("cat", true)).expect("a url");
    let mut good = websocket(&good, "v5.channel.k8s.io").await;
    for rubbish in [&[0x80, 3, 0, 4, 0, 0xff, 0xff, 0xff][..], &[0xff; 64], &[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0]] {
        let url = server.exec(shell("cat", true)).expect("a url");
        let (url, rubbish) = (url.clone(), rubbish.to_vec());
        let ended = tokio::task::spawn_blocking(move || spdy_rubbish(&url, &rubbish)).await.expect("asked");
        assert!(ended, "the server closes");
    }
    good.send(Message::Binary(b"\0still here"[..].into())).await.expect("sent");
    good.send(Message::Binary(b"\xff\0"[..].into())).await.expect("sent");
    assert_eq!(within(channels(good)).await[1], b"still here");
}

fn spdy_rubbish(url: &str, rubbish: &[u8]) -> bool {
    let rest = url.strip_prefix("http://").expect("http");
    let (authority, path) = rest.split_once('/').expect("a path");
    let mut socket = TcpStream::connect(authority).expect("connected");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let request = format!("POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n");
    socket.write_all(request.as_bytes()).expect("sent");
    let mut answer = [0; 4096];
    let count = socket.read(&mut answer).expect("answered");
    assert!(answer[..count].starts_with(b"HTTP/1.1 101"), "upgraded");
    let _ = socket.write_all(rubbish);
    let mut rest = Vec::new();
    let ended = socket.read_to_end(&mut rest);
    !ended.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
}

/// As a hostile client writes SPDY: whatever streams and bytes it likes.
struct SpdyClient {
    socket: TcpStream,
    headers: flate2::Compress,
}

impl SpdyClient {
    fn port_forward(url: &str) -> Self {
        let rest = url.strip_prefix("http://").expect("http");
        let (authority, path) = rest.split_once('/').expect("a path");
        let mut socket = TcpStream::connect(authority).expect("connected");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let request = format!(
            "POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).expect("answered");
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        let mut headers = flate2::Compress::new(flate2::Compression::fast(), true);
        headers.set_dictionary(include_bytes!("../src/streaming/spdy/dictionary.bin")).expect("a dictionary");
        Self { socket, headers }
    }

    fn frame(head: [u8; 4], flags: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        [&head[..], &[flags], &length[1..], body].concat()
    }

    /// A SYN_STREAM.
    fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let number = |n: usize| u32::try_from(n).expect("short").to_be_bytes();
        let mut plain = number(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(number(text.len()));
            plain.extend(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 1024);
        self.headers.compress_vec(&plain, &mut block, flate2::FlushCompress::Sync).expect("compressed");
        let body = [&stream.to_be_bytes()[..], &[0; 6], &block].concat();
        Self::frame([0x80, 3, 0, 1], 0, &body)
    }

    fn data(stream: u32, bytes: &[u8]) -> Vec<u8> {
        Self::frame(stream.to_be_bytes(), 0, bytes)
    }

    /// Kinds and streams of control frames until `enough` says so, by a reader of its own.
    fn listen(&self, mut enough: impl FnMut(u8, u32) -> bool + Send + 'static) -> std::thread::JoinHandle<bool> {
        let mut socket = std::io::BufReader::new(self.socket.try_clone().expect("cloned"));
        std::thread::spawn(move || {
            let mut head = [0; 8];
            while socket.read_exact(&mut head).is_ok() {
                let mut body = vec![0; usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7])];
                if socket.read_exact(&mut body).is_err() {
                    return false;
                }
                let Some(stream) = body.first_chunk::<4>().filter(|_| head[0] & 0x80 != 0) else { continue };
                if enough(head[3], u32::from_be_bytes(*stream)) {
                    return true;
                }
            }
            false
        })
    }
}

/// What this process has in memory: the server, and the clients of these tests.
fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("of ourselves");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A third of what the floods below send: who kept it would have more.
const FLAT_KB: u64 = 50 << 10;

/// Of SPDY.
const RST_STREAM: u8 = 3;
const PING: u8 = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_of_one_client_are_refused_in_flat_memory_and_others_go_on() {
    const STREAMS: u32 = 10_000;
    let server = server();
    let other = server.exec(shell("cat", true)).expect("a url");
    let mut other = websocket(&other, "v5.channel.k8s.io").await;
    let url = server.port_forward("p".to_owned(), vec![80]).expect("a url");
    let before = resident_kb();
    let flood = tokio::task::spawn_blocking(move || {
        let mut client = SpdyClient::port_forward(&url);
        let mut refused = 0;
        let listener = client.listen(move |kind, _| {
            refused += usize::from(kind == RST_STREAM);
            kind == PING && refused > 0
        });
        // The first has no partner that could have come before it.
        let mut bytes = client.open(1, &[("streamtype", "data"), ("port", "80")]);
        for number in 1..=STREAMS {
            let (stream, id) = (2 * number + 1, number.to_string());
            let kind = if number % 2 == 0 { "data" } else { "error" };
            bytes.extend(client.open(stream, &[("streamtype", kind), ("port", "80"), ("requestid", &id)]));
            bytes.extend(SpdyClient::data(stream, &[7; 16 << 10]));
            client.socket.write_all(&bytes).expect("taken, or thrown away");
            bytes.clear();
        }
        let ping = SpdyClient::frame([0x80, 3, 0, PING], 0, &1u32.to_be_bytes());
        client.socket.write_all(&ping).expect("taken");
        listener.join().expect("a reader")
    });
    assert!(within(flood).await.expect("asked"), "streams are refused, and the connection goes on");
    let grown = resident_kb().saturating_sub(before);
    assert!(grown < FLAT_KB, "{grown} KB more");
    other.send(Message::Binary(b"\0still here"[..].into())).await.expect("sent");
    other.send(Message::Binary(b"\xff\0"[..].into())).await.expect("sent");
    assert_eq!(within(channels(other)).await[1], b"still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_over_a_websocket_stalls_its_client_and_takes_no_memory() {
    const STALL: Duration = Duration::from_secs(2);
    const PIECES: usize = 5000;
    let server = server();
    let other = server.exec(shell("cat", true)).expect("a url");
    let mut other = websocket(&other, "v5.channel.k8s.io").await;
    let url = server.exec(shell("sleep 6", true)).expect("a url");
    let mut flood = websocket(&url, "v5.channel.k8s.io").await;
    let before = resident_kb();
    // Channels that no protocol has, and standard input, which nobody reads.
    for channel in 5..=250u8 {
        let _ = flood.send(Message::Binary(vec![channel; 1024].into())).await;
    }
    let mut sent = 0;
    while sent < PIECES {
        let piece = Message::Binary(vec![0; 32 << 10].into());
        match tokio::time::timeout(STALL, flood.send(piece)).await {
            Ok(Ok(())) => sent += 1,
            // The server has closed, or it takes nothing more.
            Ok(Err(_)) | Err(_) => break,
        }
    }
    assert!(sent < PIECES, "all of it was taken");
    let grown = resident_kb().saturating_sub(before);
    assert!(grown < FLAT_KB, "{grown} KB more");
    drop(flood);
    other.send(Message::Binary(b"\0still here"[..].into())).await.expect("sent");
    other.send(Message::Binary(b"\xff\0"[..].into())).await.expect("sent");
    assert_eq!(within(channels(other)).await[1], b"still here");
}

#[tokio::test]
async fn guessed_tokens_open_nothing_and_spend_no_other() {
    const GUESSES: usize = 500;
    let server = server();
    let url = server.exec(shell("echo mine", false)).expect("a url");
    let place = url.rsplit_once('/').expect("a token").0.to_owned();
    let answers = tokio::task::spawn_blocking(move || {
        (0..GUESSES).all(|guess| plain_request(&format!("{place}/{guess:022}"), "").contains("404"))
    });
    assert!(within(answers).await.expect("asked"));
    let [_, stdout, _, _] = within(channels(websocket(&url, "v4.channel.k8s.io").await)).await;
    assert_eq!(stdout, b"mine\n");
    let again = tokio::task::spawn_blocking(move || plain_request(&url, "")).await.expect("asked");
    assert!(again.contains("404"), "{again}");
}

#[tokio::test]
async fn what_the_key_derivation_says_is_what_clients_expect() {
    assert_eq!(handshake::derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}
