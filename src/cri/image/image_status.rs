//! ImageStatus: an image that is not here is an empty answer, not an error.

use std::collections::HashMap;

use tonic::Status;

use super::describe;
use crate::cri::{Services, validate};
use crate::proto::cri::{ImageStatusRequest, ImageStatusResponse};

/// See the module.
pub async fn image_status(services: &Services, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
    let name = validate::image(request.image.as_ref())?;
    let Some(image) = services.images()?.find(name) else { return Ok(ImageStatusResponse::default()) };
    let info = match request.verbose {
        true => HashMap::from([("info".to_owned(), describe::info(&image).to_string())]),
        false => HashMap::new(),
    };
    Ok(ImageStatusResponse { image: Some(describe::describe(&image)), info })
}
