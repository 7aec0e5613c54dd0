//! SaveImages: an archive in pieces, as fast as the client takes them.

use std::io;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::codegen::BoxStream;

use super::guarded;
use crate::cri::{Services, validate};
use crate::image::archive::save::Format;
use crate::proto::cricket::{ArchiveFormat, SaveImagesRequest, SaveImagesResponse};

/// Bytes of one message.
const CHUNK_BYTES: usize = 256 << 10;
/// Messages that wait for the client.
const CHUNKS_WAITING: usize = 4;

/// A client that goes away ends it.
pub async fn save_images(
    services: &Services,
    request: SaveImagesRequest,
) -> Result<BoxStream<SaveImagesResponse>, Status> {
    if request.images.is_empty() {
        return Err(Status::invalid_argument("images is empty"));
    }
    request.images.iter().try_for_each(|name| validate::not_empty(name, "images").map(|_| ()))?;
    let format = match request.format() {
        ArchiveFormat::Oci => Format::Oci,
        ArchiveFormat::Docker => Format::Docker,
    };
    let images = services.images()?.clone();
    let (messages, receiver) = mpsc::channel(CHUNKS_WAITING);
    tokio::spawn(async move {
        let out = Chunks { messages: messages.clone(), data: Vec::new() };
        let save = async { Ok(images.save(request.images, format, Box::new(out)).await?) };
        if let Err(status) = guarded(save).await {
            let _ = messages.send(Err(status)).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Makes messages of what is written.
struct Chunks {
    messages: mpsc::Sender<Result<SaveImagesResponse, Status>>,
    data: Vec<u8>,
}

impl io::Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK_BYTES - self.data.len());
        self.data.extend_from_slice(&bytes[..count]);
        if self.data.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.data.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.data);
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone away");
        self.messages.blocking_send(Ok(SaveImagesResponse { data })).map_err(gone)
    }
}
