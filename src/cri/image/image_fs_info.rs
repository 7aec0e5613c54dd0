//! ImageFsInfo: a kubelet's probe of the image service; an error ends the kubelet.

use std::time::{SystemTime, UNIX_EPOCH};

use tonic::Status;

use crate::cri::Services;
use crate::image::FilesystemUsage;
use crate::proto::cri::{self, FilesystemIdentifier, ImageFsInfoRequest, ImageFsInfoResponse, UInt64Value};

/// Counting goes through directories and may take a while: not on a thread that serves.
pub async fn image_fs_info(services: &Services, _request: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, Status> {
    let images = services.images()?.clone();
    let counted = tokio::task::spawn_blocking(move || images.usage()).await;
    let (images, snapshots) = counted.map_err(|_| Status::internal("counting the images' bytes failed"))??;
    let timestamp = now_nanoseconds();
    Ok(ImageFsInfoResponse {
        image_filesystems: vec![describe(images, timestamp)],
        container_filesystems: vec![describe(snapshots, timestamp)],
    })
}

fn describe(usage: FilesystemUsage, timestamp: i64) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp,
        fs_id: Some(FilesystemIdentifier { mountpoint: usage.mountpoint.to_string_lossy().into_owned() }),
        used_bytes: Some(UInt64Value { value: usage.bytes }),
        inodes_used: Some(UInt64Value { value: usage.inodes }),
    }
}

fn now_nanoseconds() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
}
