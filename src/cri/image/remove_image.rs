//! RemoveImage: by any one of its names an image goes with all of them; what is gone is removed.

use tonic::Status;

use crate::cri::{Services, validate};
use crate::proto::cri::{RemoveImageRequest, RemoveImageResponse};

/// See the module.
pub async fn remove_image(services: &Services, request: RemoveImageRequest) -> Result<RemoveImageResponse, Status> {
    let name = validate::image(request.image.as_ref())?;
    services.images()?.remove(name).await?;
    Ok(RemoveImageResponse {})
}
