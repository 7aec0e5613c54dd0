//! RPCs about the runtime itself.

mod get_container_events;
mod list_metric_descriptors;
mod runtime_config;
mod status;
mod update_runtime_config;
mod version;

pub use get_container_events::get_container_events;
pub use list_metric_descriptors::list_metric_descriptors;
pub use runtime_config::runtime_config;
pub use status::status;
pub use update_runtime_config::update_runtime_config;
pub use version::version;
