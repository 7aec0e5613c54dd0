//! LoadImages: an archive in chunks, progress back, then a message for each image.

use std::io;

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tonic::codegen::BoxStream;
use tonic::{Status, Streaming};

use super::{guarded, progress};
use crate::cri::Services;
use crate::image::Image;
use crate::proto::cricket::{LoadImagesRequest, LoadImagesResponse, load_images_response::Message};

/// A client that goes away ends its archive, and with it the load.
pub async fn load_images(
    services: &Services,
    archive: Streaming<LoadImagesRequest>,
) -> Result<BoxStream<LoadImagesResponse>, Status> {
    services.backend()?;
    let (messages, receiver) = mpsc::channel(progress::MESSAGES_WAITING);
    let services = services.clone();
    tokio::spawn(async move {
        let answers = match guarded(load(&services, archive, messages.clone())).await {
            Ok(images) => images.iter().map(|image| Ok(answer(image))).collect(),
            Err(status) => vec![Err(status)],
        };
        for answer in answers {
            if messages.send(answer).await.is_err() {
                return;
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

async fn load(
    services: &Services,
    archive: Streaming<LoadImagesRequest>,
    messages: mpsc::Sender<Result<LoadImagesResponse, Status>>,
) -> Result<Vec<std::sync::Arc<Image>>, Status> {
    let backend = services.backend()?;
    let bytes = archive.map(|message| message.map(|m| io::Cursor::new(m.data)).map_err(io::Error::other));
    let sink = progress::sink(messages, |progress| LoadImagesResponse { message: Some(Message::Progress(progress)) });
    let images = backend.images.load(Box::new(StreamReader::new(bytes)), Some(sink)).await?;
    (backend.after_large_work)();
    Ok(images)
}

fn answer(image: &Image) -> LoadImagesResponse {
    LoadImagesResponse { message: Some(Message::Image(progress::loaded(image))) }
}
