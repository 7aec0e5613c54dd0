//! One direction of one stream between two tasks: a bounded queue of pieces.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{CHUNK_BYTES, CHUNKS_WAITING};

/// The sending end: what the transport received for this stream. Dropping it is the end of the stream.
pub type ChunkSender = mpsc::Sender<Bytes>;
/// The receiving end.
pub type ChunkReceiver = mpsc::Receiver<Bytes>;

/// A queue.
pub fn queue() -> (ChunkSender, ChunkReceiver) {
    mpsc::channel(CHUNKS_WAITING)
}

/// Where a task writes the outgoing bytes of one stream; each transport has its own.
pub trait ChunkSink: Send + 'static {
    /// Sends one piece, waiting while the client does not read. False: the client is gone.
    fn send(&mut self, chunk: Bytes) -> impl Future<Output = bool> + Send;
    /// No more will be sent on this stream.
    fn finish(&mut self) -> impl Future<Output = ()> + Send;
}

/// From a descriptor to the client, until either ends. True: the source ended, the client is there.
pub async fn pump_out(mut source: impl AsyncRead + Unpin, sink: &mut impl ChunkSink) -> bool {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match source.read(&mut buffer).await {
            Ok(0) | Err(_) => return true,
            Ok(count) => {
                if !sink.send(Bytes::copy_from_slice(&buffer[..count])).await {
                    return false;
                }
            }
        }
    }
}

/// From the client to a descriptor, until either ends; then the descriptor is shut down and dropped.
pub async fn pump_in(mut source: ChunkReceiver, mut target: impl AsyncWrite + Unpin) {
    while let Some(chunk) = source.recv().await {
        if target.write_all(&chunk).await.is_err() {
            return;
        }
    }
    let _ = target.shutdown().await;
}
