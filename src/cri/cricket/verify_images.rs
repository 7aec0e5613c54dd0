//! VerifyImages: a message for each layer as it was looked at, then one for each image.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::codegen::BoxStream;

use super::{guarded, progress};
use crate::cri::Services;
use crate::image::{Verdict, VerifiedImage, VerifiedLayer};
use crate::proto::cricket::verify_images_response::Message;
use crate::proto::cricket::{self as own, VerifyImagesRequest, VerifyImagesResponse};

/// A client that goes away ends it after the layer that is being read.
pub async fn verify_images(
    services: &Services,
    request: VerifyImagesRequest,
) -> Result<BoxStream<VerifyImagesResponse>, Status> {
    let images = services.images()?.clone();
    let (messages, receiver) = mpsc::channel(progress::MESSAGES_WAITING);
    let layers = messages.clone();
    let report = move |layer: VerifiedLayer| layers.blocking_send(Ok(layer_message(layer))).is_ok();
    tokio::spawn(async move {
        let answers = match guarded(async { Ok(images.verify(request.images, report).await?) }).await {
            Ok(verified) => verified.into_iter().map(|image| Ok(image_message(image))).collect(),
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

fn layer_message(layer: VerifiedLayer) -> VerifyImagesResponse {
    let VerifiedLayer { diff_id, verdict, detail } = layer;
    let layer = own::VerifiedLayer { diff_id, verdict: word(verdict).into(), detail };
    VerifyImagesResponse { message: Some(Message::Layer(layer)) }
}

fn image_message(verified: VerifiedImage) -> VerifyImagesResponse {
    let own::LoadedImage { id, names, .. } = progress::loaded(&verified.image);
    let verdict = word(verified.verdict).into();
    let image = own::VerifiedImage { id, names, verdict, damaged: verified.damaged };
    VerifyImagesResponse { message: Some(Message::Image(image)) }
}

fn word(verdict: Verdict) -> own::Verdict {
    match verdict {
        Verdict::Whole => own::Verdict::Whole,
        Verdict::Damaged => own::Verdict::Damaged,
        Verdict::Unknown => own::Verdict::Unknown,
    }
}
