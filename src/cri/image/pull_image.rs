//! PullImage: the answer is the image's id, as everywhere.

use tonic::Status;

use super::{credentials, fetch};
use crate::cri::{Services, validate};
use crate::proto::cri::{PullImageRequest, PullImageResponse};

/// Two pulls of one image join.
pub async fn pull_image(services: &Services, request: PullImageRequest) -> Result<PullImageResponse, Status> {
    let reference = validate::image(request.image.as_ref())?;
    let credentials = credentials::credentials(request.auth, reference)?;
    let image = fetch::fetch(services, reference, credentials, None).await?;
    Ok(PullImageResponse { image_ref: image.id.clone() })
}
