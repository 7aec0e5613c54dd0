//! WebSocket: channels of remotecommand, one byte (or, in base64, one digit) before each message; and a tunnel for
//! SPDY's bytes.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::CHUNK_BYTES;
use super::chunks::ChunkSink;

/// Largest message of a client. The field's clients send at most 32 KiB and a byte.
const MESSAGE_LIMIT_BYTES: usize = 1 << 20;

/// Messages that wait to be written.
const MESSAGES_WAITING: usize = 8;

/// What is spoken after the upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `v5.channel.k8s.io`: as v4, and channel 255 closes one.
    V5,
    /// `v4.channel.k8s.io`: the error channel carries a JSON status.
    V4,
    /// `v4.base64.channel.k8s.io`.
    V4Base64,
    /// `channel.k8s.io`: the error channel carries text.
    Channel,
    /// `base64.channel.k8s.io`.
    Base64,
    /// `SPDY/3.1+portforward.k8s.io`: bytes of a SPDY connection in binary messages.
    SpdyTunnel,
}

impl Protocol {
    const REMOTE_COMMAND: [Self; 5] = [Self::V5, Self::V4, Self::V4Base64, Self::Channel, Self::Base64];

    /// As it stands in Sec-WebSocket-Protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::V5 => "v5.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
            Self::V4Base64 => "v4.base64.channel.k8s.io",
            Self::Channel => "channel.k8s.io",
            Self::Base64 => "base64.channel.k8s.io",
            Self::SpdyTunnel => "SPDY/3.1+portforward.k8s.io",
        }
    }

    /// The best of what is offered. `Some(None)`: nothing was offered, and the first remotecommand is spoken.
    pub fn choose(offered: &[&str], port_forward: bool) -> Option<Option<Self>> {
        if port_forward {
            return offered.contains(&Self::SpdyTunnel.name()).then_some(Some(Self::SpdyTunnel));
        }
        if offered.is_empty() {
            return Some(None);
        }
        Self::REMOTE_COMMAND.into_iter().find(|p| offered.contains(&p.name())).map(Some)
    }

    /// Text messages, base64 after the channel's digit.
    pub fn is_base64(self) -> bool {
        matches!(self, Self::V4Base64 | Self::Base64)
    }

    /// The error channel carries a JSON status.
    pub fn has_status(self) -> bool {
        matches!(self, Self::V5 | Self::V4 | Self::V4Base64)
    }
}

/// A WebSocket that a client upgraded to.
pub async fn accept<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .read_buffer_size(CHUNK_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(MESSAGE_LIMIT_BYTES)
        .max_message_size(Some(MESSAGE_LIMIT_BYTES))
        .max_frame_size(Some(MESSAGE_LIMIT_BYTES));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Queue towards the task that writes.
pub type Outgoing = mpsc::Sender<Message>;

/// Starts the task that writes; it ends, closing the socket, when every sender is dropped.
pub fn write_messages<T>(mut sink: SplitSink<WebSocketStream<T>, Message>) -> (Outgoing, tokio::task::JoinHandle<()>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (outgoing, mut messages) = mpsc::channel(MESSAGES_WAITING);
    let writing = tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        // A client takes an end without a code for a broken connection.
        let end = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
        let _ = sink.send(Message::Close(Some(end))).await;
        let _ = sink.close().await;
    });
    (outgoing, writing)
}

/// One outgoing channel of remotecommand.
pub struct Channel {
    /// 1 stdout, 2 stderr, 3 error.
    pub number: u8,
    /// The task that writes.
    pub outgoing: Outgoing,
    /// See [`Protocol::is_base64`].
    pub base64: bool,
}

impl ChunkSink for Channel {
    async fn send(&mut self, chunk: Bytes) -> bool {
        let message = if self.base64 {
            Message::Text(format!("{}{}", self.number, STANDARD.encode(&chunk)).into())
        } else {
            let mut bytes = Vec::with_capacity(chunk.len() + 1);
            bytes.push(self.number);
            bytes.extend_from_slice(&chunk);
            Message::Binary(bytes.into())
        };
        self.outgoing.send(message).await.is_ok()
    }

    async fn finish(&mut self) {}
}

/// What a client's message says.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Bytes for a channel.
    Data(u8, Bytes),
    /// A channel is closed (v5).
    Close(u8),
    /// Nothing to do.
    Nothing,
    /// The rules are broken, or the client says goodbye.
    End,
}

/// Number of the pseudo-channel that closes another (v5).
const CLOSE_CHANNEL: u8 = 255;

/// Parses one message of a client.
pub fn parse(protocol: Option<Protocol>, message: Message) -> Incoming {
    let base64 = protocol.is_some_and(Protocol::is_base64);
    match message {
        Message::Binary(bytes) if !base64 => match bytes.first() {
            None => Incoming::Nothing,
            Some(&CLOSE_CHANNEL) if protocol == Some(Protocol::V5) => {
                bytes.get(1).map_or(Incoming::End, |c| Incoming::Close(*c))
            }
            Some(&channel) => Incoming::Data(channel, bytes.slice(1..)),
        },
        Message::Text(text) if base64 => {
            let Some(digit) = text.as_bytes().first() else { return Incoming::Nothing };
            let (true, Ok(bytes)) = (digit.is_ascii_digit(), STANDARD.decode(&text.as_bytes()[1..])) else {
                return Incoming::End;
            };
            Incoming::Data(digit - b'0', bytes.into())
        }
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Incoming::Nothing,
        Message::Binary(_) | Message::Text(_) | Message::Close(_) => Incoming::End,
    }
}

/// The bytes inside the binary messages, as one stream both ways.
pub async fn tunnel<T>(io: T) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(CHUNK_BYTES);
    let (sink, stream) = accept(io).await.split();
    let (outgoing, _writing) = write_messages(sink);
    tokio::spawn(async move {
        let (reader, writer) = tokio::io::split(ours);
        let incoming = tokio::spawn(unwrap_messages(stream, writer));
        let _ = wrap_messages(reader, outgoing).await;
        incoming.abort();
    });
    theirs
}

async fn unwrap_messages<T>(mut stream: SplitStream<WebSocketStream<T>>, mut writer: impl AsyncWrite + Unpin)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = stream.next().await {
        match message {
            Message::Binary(bytes) => {
                if writer.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            Message::Text(_) | Message::Close(_) => break,
        }
    }
    let _ = writer.shutdown().await;
}

async fn wrap_messages(mut reader: impl AsyncRead + Unpin, outgoing: Outgoing) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = reader.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let message = Message::Binary(Bytes::copy_from_slice(&buffer[..count]));
        outgoing.send(message).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        let binary = |bytes: &[u8]| Message::Binary(Bytes::copy_from_slice(bytes));
        for (protocol, message, expected) in [
            (Protocol::V5, binary(b"\x00hi"), Incoming::Data(0, Bytes::from_static(b"hi"))),
            (Protocol::V5, binary(b"\xff\x00"), Incoming::Close(0)),
            (Protocol::V5, binary(b"\xff"), Incoming::End),
            (Protocol::V4, binary(b""), Incoming::Nothing),
            (Protocol::V4, binary(b"\xff\x00"), Incoming::Data(255, Bytes::from_static(b"\0"))),
            (Protocol::V4Base64, Message::Text("0aGk=".into()), Incoming::Data(0, Bytes::from_static(b"hi"))),
            (Protocol::V4Base64, Message::Text("0!".into()), Incoming::End),
            (Protocol::V4Base64, Message::Text("xaGk=".into()), Incoming::End),
            (Protocol::V4, Message::Text("0hi".into()), Incoming::End),
        ] {
            assert_eq!(parse(Some(protocol), message.clone()), expected, "{protocol:?} {message:?}");
        }
    }
}
