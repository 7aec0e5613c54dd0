//! Port-forward: pairs of SPDY streams, each pair one connection to a port of the pod.
//!
//! A pair is an `error` and a `data` stream with the same `requestid`. A stream is taken when it comes, for clients
//! open the second one only after the first was answered. A connection that fails says why on its error stream; then
//! both are reset, and the other pairs go on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::pod::session::Sessions;

use super::STREAMS_TIMEOUT;
use super::chunks::{self, ChunkReceiver, ChunkSink};
use super::descriptor::Descriptor;
use super::spdy::{self, Connection, IncomingStream, StreamSink};

/// The only version there is.
pub const PROTOCOL: &str = "portforward.k8s.io";

/// Halves of streams that live at once: 256 connections of a client.
const STREAM_COUNT_LIMIT: usize = 1024;

/// Streams that wait for their other one.
const HALF_PAIRS_LIMIT: usize = 64;

/// Serves one client, over SPDY itself or a tunnel that carries it.
pub async fn over_spdy(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    pod_id: String,
    ports: Vec<u16>,
    sessions: Arc<dyn Sessions>,
) {
    let mut connection = Connection::start(io, STREAM_COUNT_LIMIT);
    let mut waiting = HalfPairs::default();
    while let Some(stream) = connection.accept().await {
        waiting.forget_old().await;
        let Some(place) = Place::of(&stream) else { continue };
        if !ports.is_empty() && !ports.contains(&place.port) || !waiting.has_room_for(&place) {
            continue;
        }
        let Some(half) = Half::accept(stream, place.is_data).await else { return };
        if let Some(pair) = waiting.join(place, half).await {
            tokio::spawn(forward(pair, pod_id.clone(), Arc::clone(&sessions), connection.closed()));
        }
    }
}

/// Where a stream belongs.
#[derive(Debug)]
struct Place {
    key: String,
    port: u16,
    is_data: bool,
}

impl Place {
    /// None: a stream that makes no sense; it is dropped, and so refused.
    fn of(stream: &IncomingStream) -> Option<Self> {
        let header = |name| spdy::headers::get(&stream.headers, name);
        let is_data = match header("streamtype")? {
            "data" => true,
            "error" => false,
            _ => return None,
        };
        let port = header("port")?.parse::<u16>().ok().filter(|p| *p != 0)?;
        // A client without request ids opens the data stream right after its error stream.
        let key = match header("requestid") {
            Some(id) => format!("request {id} {port}"),
            None => format!("stream {} {port}", stream.id.checked_sub(if is_data { 2 } else { 0 })?),
        };
        Some(Self { key, port, is_data })
    }
}

/// A stream that was taken.
struct Half {
    is_data: bool,
    reset: CancellationToken,
    incoming: ChunkReceiver,
    sink: StreamSink,
}

impl Half {
    /// None: the client is gone.
    async fn accept(stream: IncomingStream, is_data: bool) -> Option<Self> {
        let reset = stream.reset.clone();
        let (incoming, sink) = stream.accept().await?;
        Some(Self { is_data, reset, incoming, sink })
    }
}

struct Pair {
    port: u16,
    data: Half,
    error: Half,
}

/// Streams whose other one has not come yet.
#[derive(Default)]
struct HalfPairs(HashMap<String, (Half, Instant)>);

impl HalfPairs {
    /// Whether the stream can wait, or completes a pair.
    fn has_room_for(&self, place: &Place) -> bool {
        self.0.len() < HALF_PAIRS_LIMIT || self.0.contains_key(&place.key)
    }

    /// Answers the pair that `half` completes. Two of a kind are both given up.
    async fn join(&mut self, place: Place, half: Half) -> Option<Pair> {
        let Some((other, _)) = self.0.remove(&place.key) else {
            self.0.insert(place.key, (half, Instant::now()));
            return None;
        };
        match (half.is_data, other.is_data) {
            (true, false) => Some(Pair { port: place.port, data: half, error: other }),
            (false, true) => Some(Pair { port: place.port, data: other, error: half }),
            _ => {
                half.sink.reset().await;
                other.sink.reset().await;
                None
            }
        }
    }

    /// Gives up those whose other one did not come in time.
    async fn forget_old(&mut self) {
        let now = Instant::now();
        for (_, (half, _)) in self.0.extract_if(|_, (_, since)| now.duration_since(*since) >= STREAMS_TIMEOUT) {
            half.sink.reset().await;
        }
    }
}

async fn forward(pair: Pair, pod_id: String, sessions: Arc<dyn Sessions>, closed: CancellationToken) {
    let Pair { port, data, error } = pair;
    // A client closes its half of the error stream at once; what it sends there means nothing.
    drop(error.incoming);
    tokio::select! {
        () = connect(&pod_id, port, sessions, data.incoming, data.sink, error.sink) => {}
        () = data.reset.cancelled() => {}
        () = closed.cancelled() => {}
    }
}

async fn connect(
    pod_id: &str,
    port: u16,
    sessions: Arc<dyn Sessions>,
    incoming: ChunkReceiver,
    mut data: StreamSink,
    mut error: StreamSink,
) {
    let connected = match sessions.port_forward(pod_id.to_owned(), port).await {
        Ok(socket) => Descriptor::new(socket).map_err(|e| e.to_string()),
        Err(e) => Err(e.message),
    };
    match connected {
        Ok(socket) => {
            let (_, client_is_there) = tokio::join!(chunks::pump_in(incoming, socket.clone()), async {
                let there = chunks::pump_out(socket, &mut data).await;
                data.finish().await;
                there
            });
            if client_is_there {
                error.finish().await;
            }
        }
        Err(reason) => {
            error.send(Bytes::from(format!("port {port} of pod {pod_id}: {reason}"))).await;
            error.finish().await;
            data.reset().await;
        }
    }
}
