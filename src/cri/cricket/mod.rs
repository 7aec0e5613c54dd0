//! Our own service beside CRI: what the command line needs and CRI does not have.

mod load_images;
mod node;
mod progress;
mod pull_image;

pub use load_images::load_images;
pub use node::node;
pub use pull_image::pull_image;
