//! RPCs about containers.

mod attach;
mod checkpoint_container;
mod container_stats;
mod container_status;
mod create_container;
mod exec;
mod exec_sync;
mod list_container_stats;
mod list_containers;
mod remove_container;
mod reopen_container_log;
mod start_container;
mod stop_container;
mod stream_container_stats;
mod stream_containers;
mod update_container_resources;

pub use attach::attach;
pub use checkpoint_container::checkpoint_container;
pub use container_stats::container_stats;
pub use container_status::container_status;
pub use create_container::create_container;
pub use exec::exec;
pub use exec_sync::exec_sync;
pub use list_container_stats::list_container_stats;
pub use list_containers::list_containers;
pub use remove_container::remove_container;
pub use reopen_container_log::reopen_container_log;
pub use start_container::start_container;
pub use stop_container::stop_container;
pub use stream_container_stats::stream_container_stats;
pub use stream_containers::stream_containers;
pub use update_container_resources::update_container_resources;
