//! The streams of one SPDY connection: a task that reads, a task that writes, and between them only bounded queues.
//!
//! The reading task owns the table of streams. When a stream's queue is full it waits, and with it the client:
//! that is the only flow control that the field's clients have.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::streaming::CHUNK_BYTES;
use crate::streaming::chunks::{self, ChunkReceiver, ChunkSender, ChunkSink};

use super::frame::{self, Control, HEADER_BYTES, Head, ResetStatus};
use super::headers::{HeaderReader, HeaderWriter, Headers};

/// Frames that wait to be written.
const FRAMES_WAITING: usize = 8;

/// New streams that wait to be accepted; more are refused.
const STREAMS_WAITING: usize = 64;

/// Time for the last frames to reach a client that does not read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

enum Outgoing {
    Reply { stream: u32 },
    Data { stream: u32, fin: bool, bytes: Bytes },
    Frame(Vec<u8>),
}

/// A client's connection. Dropping it cuts the connection.
pub struct Connection {
    incoming: mpsc::Receiver<IncomingStream>,
    outgoing: mpsc::Sender<Outgoing>,
    closed: CancellationToken,
    reading: JoinHandle<()>,
    writing: JoinHandle<()>,
}

/// A stream that the client opened and that waits to be accepted. Dropping it refuses it.
pub struct IncomingStream {
    /// Odd and rising.
    pub id: u32,
    /// Of the SYN_STREAM.
    pub headers: Headers,
    /// Cancelled when the client resets the stream.
    pub reset: CancellationToken,
    receiver: Option<ChunkReceiver>,
    outgoing: mpsc::Sender<Outgoing>,
    live: Arc<()>,
}

/// The outgoing half of an accepted stream.
pub struct StreamSink {
    stream: u32,
    reset: CancellationToken,
    outgoing: mpsc::Sender<Outgoing>,
    finished: bool,
    _live: Arc<()>,
}

impl Connection {
    /// Speaks SPDY over `io`; at most `streams` streams live at once.
    pub fn start(io: impl AsyncRead + AsyncWrite + Send + 'static, streams: usize) -> Self {
        let (reader, writer) = tokio::io::split(io);
        let (outgoing, frames) = mpsc::channel(FRAMES_WAITING);
        let (accepted, incoming) = mpsc::channel(STREAMS_WAITING);
        let closed = CancellationToken::new();
        let reader = Reader {
            io: BufReader::new(reader),
            headers: HeaderReader::default(),
            streams: HashMap::new(),
            accepted,
            outgoing: outgoing.downgrade(),
            live: Arc::new(()),
            limit: streams,
            last_stream: 0,
        };
        let reading = tokio::spawn({
            let closed = closed.clone();
            async move {
                if let Err(error) = reader.run().await {
                    tracing::debug!(%error, "streaming server: SPDY connection ended");
                }
                closed.cancel();
            }
        });
        let writing = tokio::spawn({
            let closed = closed.clone();
            async move {
                if write_frames(writer, frames).await.is_err() {
                    closed.cancel();
                }
            }
        });
        Self { incoming, outgoing, closed, reading, writing }
    }

    /// The next stream that the client opens; none when the connection is over.
    pub async fn accept(&mut self) -> Option<IncomingStream> {
        self.incoming.recv().await
    }

    /// Cancelled when the client is gone.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Writes what is queued, then closes. All sinks must be dropped before.
    pub async fn close(mut self) {
        let (nobody, _) = mpsc::channel(1);
        self.outgoing = nobody;
        self.incoming.close();
        while self.incoming.try_recv().is_ok() {}
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.writing).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reading.abort();
        self.writing.abort();
        self.closed.cancel();
    }
}

impl IncomingStream {
    /// Tells the client that the stream is taken.
    pub async fn accept(mut self) -> Option<(ChunkReceiver, StreamSink)> {
        let receiver = self.receiver.take()?;
        self.outgoing.send(Outgoing::Reply { stream: self.id }).await.ok()?;
        let sink = StreamSink {
            stream: self.id,
            reset: self.reset.clone(),
            outgoing: self.outgoing.clone(),
            finished: false,
            _live: Arc::clone(&self.live),
        };
        Some((receiver, sink))
    }
}

impl Drop for IncomingStream {
    fn drop(&mut self) {
        if self.receiver.is_some() {
            let _ = self.outgoing.try_send(Outgoing::Frame(frame::reset(self.id, ResetStatus::RefusedStream)));
        }
    }
}

impl StreamSink {
    /// Gives the stream up: the client sees an error, not an end.
    pub async fn reset(mut self) {
        self.finished = true;
        let frame = frame::reset(self.stream, ResetStatus::InternalError);
        let _ = self.outgoing.send(Outgoing::Frame(frame)).await;
    }
}

impl ChunkSink for StreamSink {
    async fn send(&mut self, bytes: Bytes) -> bool {
        if self.finished || self.reset.is_cancelled() {
            return false;
        }
        self.outgoing.send(Outgoing::Data { stream: self.stream, fin: false, bytes }).await.is_ok()
    }

    async fn finish(&mut self) {
        if !std::mem::replace(&mut self.finished, true) && !self.reset.is_cancelled() {
            let last = Outgoing::Data { stream: self.stream, fin: true, bytes: Bytes::new() };
            let _ = self.outgoing.send(last).await;
        }
    }
}

async fn write_frames<T: AsyncWrite>(mut io: WriteHalf<T>, mut frames: mpsc::Receiver<Outgoing>) -> io::Result<()> {
    let mut headers = HeaderWriter::default();
    while let Some(outgoing) = frames.recv().await {
        match outgoing {
            Outgoing::Reply { stream } => {
                io.write_all(&frame::syn_reply(stream, &headers.write(&Headers::new()))).await?;
            }
            Outgoing::Frame(frame) => io.write_all(&frame).await?,
            Outgoing::Data { stream, fin, bytes } => {
                io.write_all(&frame::data_head(stream, fin, bytes.len())).await?;
                io.write_all(&bytes).await?;
            }
        }
        io.flush().await?;
    }
    io.shutdown().await
}

struct OpenStream {
    chunks: Option<ChunkSender>,
    reset: CancellationToken,
}

struct Reader<T> {
    io: BufReader<ReadHalf<T>>,
    headers: HeaderReader,
    streams: HashMap<u32, OpenStream>,
    accepted: mpsc::Sender<IncomingStream>,
    outgoing: mpsc::WeakSender<Outgoing>,
    live: Arc<()>,
    limit: usize,
    last_stream: u32,
}

impl<T: AsyncRead> Reader<T> {
    async fn run(mut self) -> io::Result<()> {
        loop {
            let mut head = [0; HEADER_BYTES];
            match self.io.read_exact(&mut head).await {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            };
            match frame::parse_head(head).map_err(io::Error::other)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    let mut body = vec![0; length];
                    self.io.read_exact(&mut body).await?;
                    let control = frame::parse_control(kind, flags, &body).map_err(io::Error::other)?;
                    self.control(control).await?;
                }
            }
        }
    }

    async fn data(&mut self, stream: u32, fin: bool, mut length: usize) -> io::Result<()> {
        let chunks = self.streams.get(&stream).and_then(|s| s.chunks.clone());
        while length > 0 {
            let mut chunk = vec![0; length.min(CHUNK_BYTES)];
            self.io.read_exact(&mut chunk).await?;
            length -= chunk.len();
            if let Some(chunks) = &chunks {
                // Nobody reads this stream any more: its bytes are dropped, the others go on.
                let _ = chunks.send(Bytes::from(chunk)).await;
            }
        }
        if fin {
            self.end(stream);
        }
        Ok(())
    }

    fn end(&mut self, stream: u32) {
        if let Some(open) = self.streams.get_mut(&stream) {
            open.chunks = None;
        }
    }

    async fn control(&mut self, control: Control) -> io::Result<()> {
        match control {
            Control::SynStream { stream, fin, block } => {
                let headers = self.headers.read(&block).map_err(io::Error::other)?;
                self.open(stream, fin, headers).await?;
            }
            Control::Headers { stream, fin, block } => {
                self.headers.read(&block).map_err(io::Error::other)?;
                if fin {
                    self.end(stream);
                }
            }
            Control::Reset { stream } => {
                if let Some(open) = self.streams.remove(&stream) {
                    open.reset.cancel();
                }
            }
            Control::Ping { id } => self.send(frame::ping(id)).await?,
            Control::GoAway | Control::Ignored => {}
        }
        Ok(())
    }

    async fn send(&mut self, frame: Vec<u8>) -> io::Result<()> {
        let outgoing = self.outgoing.upgrade().ok_or(io::ErrorKind::BrokenPipe)?;
        outgoing.send(Outgoing::Frame(frame)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> io::Result<()> {
        if stream.is_multiple_of(2) || stream <= self.last_stream {
            return Err(io::Error::other("SPDY stream ids are odd and rise"));
        }
        self.last_stream = stream;
        // Streams whose both ends are done hold no count; forget them.
        self.streams.retain(|_, open| open.chunks.as_ref().is_some_and(|c| !c.is_closed()));
        // The table's own count, and one for each of a stream's halves.
        if Arc::strong_count(&self.live) > self.limit {
            return self.send(frame::reset(stream, ResetStatus::RefusedStream)).await;
        }
        let Some(outgoing) = self.outgoing.upgrade() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let (sender, receiver) = chunks::queue();
        let reset = CancellationToken::new();
        let incoming = IncomingStream {
            id: stream,
            headers,
            reset: reset.clone(),
            receiver: Some(receiver),
            outgoing,
            live: Arc::clone(&self.live),
        };
        self.streams.insert(stream, OpenStream { chunks: (!fin).then_some(sender), reset });
        // A refused stream is dropped, and its drop tells the client.
        let _ = self.accepted.try_send(incoming);
        Ok(())
    }
}
