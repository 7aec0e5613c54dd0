//! StreamImages: ListImages in batches.

use tonic::Status;
use tonic::codegen::BoxStream;

use super::describe;
use crate::cri::{Services, stream};
use crate::proto::cri::{StreamImagesRequest, StreamImagesResponse};

/// See the module.
pub async fn stream_images(
    services: &Services,
    request: StreamImagesRequest,
) -> Result<BoxStream<StreamImagesResponse>, Status> {
    let items = describe::filtered(services.images()?, request.filter.as_ref());
    Ok(stream::batches(items, |images| StreamImagesResponse { images }))
}
