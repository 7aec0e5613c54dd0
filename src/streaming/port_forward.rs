//! Port-forward: pairs of SPDY streams, each pair one connection to a port of the pod.
//!
//! A pair is an `error` and a `data` stream with the same `requestid`. A connection that fails says why on its
//! error stream; then both are reset, and the other pairs go on.

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
        let Some(pair) = waiting.join(stream) else { continue };
        if !ports.is_empty() && !ports.contains(&pair.port) {
            continue;
        }
        tokio::spawn(forward(pair, pod_id.clone(), Arc::clone(&sessions), connection.closed()));
    }
}

struct Pair {
    port: u16,
    data: IncomingStream,
    error: IncomingStream,
}

/// Streams whose other one has not come yet.
#[derive(Default)]
struct HalfPairs(HashMap<String, (IncomingStream, Instant)>);

impl HalfPairs {
    /// Answers the pair that `stream` completes. A stream that makes no sense is dropped, and so refused.
    fn join(&mut self, stream: IncomingStream) -> Option<Pair> {
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
            None => format!("stream {} {port}", stream.id - if is_data { 2 } else { 0 }),
        };
        let now = Instant::now();
        self.0.retain(|_, (_, since)| now.duration_since(*since) < STREAMS_TIMEOUT);
        match self.0.remove(&key) {
            None if self.0.len() < HALF_PAIRS_LIMIT => {
                self.0.insert(key, (stream, now));
                None
            }
            None => None,
            Some((other, _)) => {
                let other_is_data = spdy::headers::get(&other.headers, "streamtype") == Some("data");
                match (is_data, other_is_data) {
                    (true, false) => Some(Pair { port, data: stream, error: other }),
                    (false, true) => Some(Pair { port, data: other, error: stream }),
                    _ => None,
                }
            }
        }
    }
}

async fn forward(pair: Pair, pod_id: String, sessions: Arc<dyn Sessions>, closed: CancellationToken) {
    let reset = pair.data.reset.clone();
    let port = pair.port;
    let Some((_, error)) = pair.error.accept().await else { return };
    let Some((incoming, data)) = pair.data.accept().await else { return };
    tokio::select! {
        () = connect(&pod_id, port, sessions, incoming, data, error) => {}
        () = reset.cancelled() => {}
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
