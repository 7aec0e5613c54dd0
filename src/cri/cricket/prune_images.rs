//! PruneImages: what no container uses goes.

use tonic::Status;

use super::progress;
use crate::cri::Services;
use crate::proto::cricket::{PruneImagesRequest, PruneImagesResponse};

/// Safe beside pulls, loads and creations: each of them holds what it needs.
pub async fn prune_images(services: &Services, request: PruneImagesRequest) -> Result<PruneImagesResponse, Status> {
    let (images, freed_bytes) = services.images()?.prune(request.all).await?;
    let removed: Vec<_> = images.iter().map(|image| progress::loaded(image)).collect();
    tracing::info!(images = removed.len(), freed_bytes, "pruned");
    Ok(PruneImagesResponse { removed, freed_bytes })
}
