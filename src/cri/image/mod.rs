//! RPCs of the image service.

mod credentials;
mod describe;
pub mod fetch;
mod image_fs_info;
mod image_status;
mod list_images;
mod pull_image;
mod remove_image;
mod stream_images;

pub use image_fs_info::image_fs_info;
pub use image_status::image_status;
pub use list_images::list_images;
pub use pull_image::pull_image;
pub use remove_image::remove_image;
pub use stream_images::stream_images;
