//! The client's side of exec and attach: `v5.channel.k8s.io` over WebSocket, as the Kubernetes API speaks it.
//!
//! Each binary message begins with a byte that names its channel. Input is read by a thread of its own, because a
//! read of a terminal cannot be cancelled; it ends with the process.

use std::io::{self, Read};

use anyhow::{Context, anyhow, bail};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::output;
use super::terminal::{self, RawMode};

const PROTOCOL: &str = "v5.channel.k8s.io";

/// First bytes of messages.
mod channel {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const RESIZE: u8 = 4;
    pub const CLOSE: u8 = 255;
}

/// Input that is read at once.
const CHUNK_BYTES: usize = 32 << 10;

/// Chunks of input that wait for the server.
const CHUNKS_WAITING: usize = 4;

/// A session that has been dialled.
pub struct Session {
    socket: WebSocketStream<TcpStream>,
}

/// What of the user's terminal a session takes.
#[derive(Debug, Clone, Copy)]
pub struct Wants {
    /// Standard input goes to the process.
    pub stdin: bool,
    /// The process has a terminal: ours becomes raw and tells its size.
    pub tty: bool,
}

impl Session {
    /// Dials a URL that the daemon gave out.
    pub async fn dial(url: &str) -> anyhow::Result<Self> {
        let url = url.replacen("http", "ws", 1);
        let mut request = url.as_str().into_client_request().context("the daemon gave an odd URL")?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        let address = request.uri().authority().context("the daemon gave a URL without an address")?.to_string();
        let stream =
            TcpStream::connect(&address).await.with_context(|| format!("cannot reach the daemon at {address}"))?;
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.context("the session cannot begin")?;
        Ok(Self { socket })
    }

    /// Carries bytes both ways to the session's end; answers the exit status.
    pub async fn run(mut self, wants: Wants) -> anyhow::Result<u8> {
        let _raw = (wants.tty && wants.stdin && terminal::is_terminal()).then(RawMode::enter).transpose()?;
        let mut signals = Signals::new()?;
        let mut input = if wants.stdin { Some(read_input()) } else { None };
        if wants.tty {
            self.tell_size().await?;
        }
        loop {
            tokio::select! {
                message = self.socket.next() => {
                    if let Some(status) = received(message)? {
                        return Ok(status);
                    }
                }
                chunk = next_chunk(&mut input) => match chunk {
                    Some(bytes) => self.send(channel::STDIN, &bytes).await?,
                    None => {
                        input = None;
                        self.send(channel::CLOSE, &[channel::STDIN]).await?;
                    }
                },
                event = signals.next() => match event {
                    Event::Resized if wants.tty => self.tell_size().await?,
                    Event::Resized => {}
                    Event::Ended(name) => bail!("ended by {name}"),
                },
            }
        }
    }

    async fn tell_size(&mut self) -> anyhow::Result<()> {
        let Some((width, height)) = terminal::size() else { return Ok(()) };
        let size = serde_json::json!({ "Width": width, "Height": height }).to_string();
        self.send(channel::RESIZE, size.as_bytes()).await
    }

    async fn send(&mut self, channel: u8, bytes: &[u8]) -> anyhow::Result<()> {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(bytes);
        self.socket.send(Message::Binary(Bytes::from(message))).await.context("the session broke off")
    }
}

type Received = Option<Result<Message, tokio_tungstenite::tungstenite::Error>>;

/// Writes what came; the exit status, if it was that.
fn received(message: Received) -> anyhow::Result<Option<u8>> {
    let message = match message {
        Some(message) => message.context("the session broke off")?,
        None => bail!("the session ended without saying how"),
    };
    let bytes = match message {
        Message::Binary(bytes) => bytes,
        Message::Close(Some(frame)) if !frame.reason.is_empty() => bail!("the session ended: {}", frame.reason),
        Message::Close(_) => bail!("the session ended without saying how"),
        _ => return Ok(None),
    };
    let Some((channel, data)) = bytes.split_first() else { return Ok(None) };
    match *channel {
        channel::STDOUT => output::write(false, data)?,
        channel::STDERR => output::write(true, data)?,
        channel::ERROR if !data.is_empty() => return exit_status(data).map(Some),
        _ => {}
    }
    Ok(None)
}

/// Kubernetes' `metav1.Status`, as far as it says how a process ended.
#[derive(Debug, Deserialize)]
struct Status {
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Details,
}

#[derive(Debug, Default, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Debug, Deserialize)]
struct Cause {
    reason: String,
    message: String,
}

fn exit_status(json: &[u8]) -> anyhow::Result<u8> {
    let status: Status = serde_json::from_slice(json)
        .map_err(|_| anyhow!("the session ended: {}", String::from_utf8_lossy(json).trim()))?;
    if status.status == "Success" {
        return Ok(0);
    }
    let code = status.details.causes.iter().find(|cause| cause.reason == "ExitCode");
    match code.and_then(|cause| cause.message.parse::<i32>().ok()) {
        Some(code) => Ok(as_exit_code(code)),
        None => bail!("{}", status.message.replace('\n', " ")),
    }
}

/// As a process can say it.
pub fn as_exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
    std::thread::spawn(move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match io::stdin().read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) if count > 0 => {
                    if sender.blocking_send(chunk[..count].to_vec()).is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    });
    receiver
}

/// Never resolves once the input has ended.
async fn next_chunk(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

/// A signal that concerns a session.
enum Event {
    Resized,
    Ended(&'static str),
}

/// What would otherwise end us with the terminal still raw.
struct Signals {
    resized: Signal,
    terminated: Signal,
    interrupted: Signal,
    hung_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            terminated: signal(SignalKind::terminate())?,
            interrupted: signal(SignalKind::interrupt())?,
            hung_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.resized.recv() => Event::Resized,
            _ = self.terminated.recv() => Event::Ended("SIGTERM"),
            _ = self.interrupted.recv() => Event::Ended("SIGINT"),
            _ = self.hung_up.recv() => Event::Ended("SIGHUP"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_read_from_kubernetes_words() {
        let failed = r#"{"status":"Failure","reason":"NonZeroExitCode","message":"command terminated with exit code 3",
            "details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        let cases = [(r#"{"metadata":{},"status":"Success"}"#, 0), (failed, 3)];
        for (json, expected) in cases {
            assert_eq!(exit_status(json.as_bytes()).expect("a status"), expected);
        }
        let refused = r#"{"status":"Failure","message":"no such program","reason":"InternalError"}"#;
        assert_eq!(exit_status(refused.as_bytes()).expect_err("refused").to_string(), "no such program");
        assert!(exit_status(b"plain text").expect_err("refused").to_string().contains("plain text"));
    }

    #[test]
    fn a_status_that_no_process_can_have_is_the_greatest() {
        assert_eq!([0, 137, 255, 256, -1].map(as_exit_code), [0, 137, 255, 255, 255]);
    }
}
