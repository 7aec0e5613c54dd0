//! PullImage with progress; the last message is the image.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::codegen::BoxStream;

use super::{guarded, progress};
use crate::cri::image::fetch::fetch;
use crate::cri::{Services, validate};
use crate::image::Credentials;
use crate::proto::cricket::{PullImageRequest, PullImageResponse, pull_image_response::Message};

/// A client that goes away stops the pull unless somebody else waits for it.
pub async fn pull_image(
    services: &Services,
    request: PullImageRequest,
) -> Result<BoxStream<PullImageResponse>, Status> {
    validate::not_empty(&request.reference, "reference")?;
    services.backend()?;
    let (messages, receiver) = mpsc::channel(progress::MESSAGES_WAITING);
    let services = services.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = messages.closed() => {}
            answer = guarded(pull(&services, request, messages.clone())) => {
                let _ = messages.send(answer).await;
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn credentials(request: PullImageRequest) -> Option<Credentials> {
    let PullImageRequest { username, password, identity_token, registry_token, .. } = request;
    match () {
        () if !username.is_empty() => Some(Credentials::Basic { username, password }),
        () if !identity_token.is_empty() => Some(Credentials::IdentityToken(identity_token)),
        () if !registry_token.is_empty() => Some(Credentials::RegistryToken(registry_token)),
        () => None,
    }
}

async fn pull(
    services: &Services,
    request: PullImageRequest,
    messages: mpsc::Sender<Result<PullImageResponse, Status>>,
) -> Result<PullImageResponse, Status> {
    let reference = request.reference.clone();
    let credentials = credentials(request);
    let sink = progress::sink(messages, |progress| PullImageResponse { message: Some(Message::Progress(progress)) });
    let image = fetch(services, &reference, credentials, Some(sink)).await?;
    Ok(PullImageResponse { message: Some(Message::Image(progress::loaded(&image))) })
}
