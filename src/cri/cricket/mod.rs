//! Our own service beside CRI: what the command line needs and CRI does not have.

mod load_images;
mod node;
mod ports;
mod progress;
mod prune_images;
mod pull_image;
mod save_images;
mod verify_images;

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tonic::Status;

pub use load_images::load_images;
pub use node::node;
pub use ports::ports;
pub use prune_images::prune_images;
pub use pull_image::pull_image;
pub use save_images::save_images;
pub use verify_images::verify_images;

/// The work behind a stream of answers runs in a task of its own; a panic there is the stream's error, not its end.
async fn guarded<T>(work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let fault = || Status::internal("this failed by a fault in cricket: its log has the place");
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| Err(fault()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_behind_a_stream_is_its_error() {
        let status = guarded::<()>(async { panic!("on purpose") }).await.expect_err("an error");
        assert_eq!(status.code(), tonic::Code::Internal);
    }
}
