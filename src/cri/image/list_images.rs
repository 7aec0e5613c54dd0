//! ListImages: from memory.

use tonic::Status;

use super::describe;
use crate::cri::Services;
use crate::proto::cri::{ListImagesRequest, ListImagesResponse};

/// See the module.
pub async fn list_images(services: &Services, request: ListImagesRequest) -> Result<ListImagesResponse, Status> {
    Ok(ListImagesResponse { images: describe::filtered(services.images()?, request.filter.as_ref()) })
}
