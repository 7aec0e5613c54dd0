//! Brings an image here: the demo image out of our own binary, every other from its registry.

use std::sync::Arc;

use tonic::Status;

use crate::cri::Services;
use crate::demo;
use crate::image::{Credentials, Image, Images, ProgressSink};

/// Dropping the future stops a pull that nobody else waits for.
pub async fn fetch(
    services: &Services,
    reference: &str,
    credentials: Option<Credentials>,
    progress: Option<ProgressSink>,
) -> Result<Arc<Image>, Status> {
    let backend = services.backend()?;
    let image = match is_demo(reference) {
        true => load_demo(&backend.images, progress).await?,
        false => backend.images.pull(reference, credentials, progress).await?,
    };
    (backend.after_large_work)();
    tracing::info!(reference, id = %image.id, bytes = image.size_bytes, "image is here");
    Ok(image)
}

/// The demo image by its name, with or without its tag.
fn is_demo(reference: &str) -> bool {
    reference == demo::NAME || Some(reference) == demo::NAME.rsplit_once(':').map(|(repository, _)| repository)
}

async fn load_demo(images: &Images, progress: Option<ProgressSink>) -> Result<Arc<Image>, Status> {
    if let Some(image) = images.find(demo::NAME) {
        return Ok(image);
    }
    let loaded = images.load(Box::new(demo::ARCHIVE), progress).await?;
    loaded.into_iter().next().ok_or_else(|| Status::internal("the demo image's archive is empty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_image_is_known_with_and_without_its_tag() {
        assert!(is_demo("cricket.local/demo:latest") && is_demo("cricket.local/demo"));
        assert!(!is_demo("cricket.local/demo:2") && !is_demo("demo") && !is_demo("cricket.local"));
    }
}
