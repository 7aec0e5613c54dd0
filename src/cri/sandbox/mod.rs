//! RPCs about pod sandboxes.

mod checkpoint_pod;
mod list_pod_sandbox;
mod list_pod_sandbox_metrics;
mod list_pod_sandbox_stats;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod port_forward;
mod remove_pod_sandbox;
mod restore_pod;
mod run_pod_sandbox;
mod stop_pod_sandbox;
mod stream_pod_sandbox_metrics;
mod stream_pod_sandbox_stats;
mod stream_pod_sandboxes;
mod update_pod_sandbox_resources;

pub use checkpoint_pod::checkpoint_pod;
pub use list_pod_sandbox::list_pod_sandbox;
pub use list_pod_sandbox_metrics::list_pod_sandbox_metrics;
pub use list_pod_sandbox_stats::list_pod_sandbox_stats;
pub use pod_sandbox_stats::pod_sandbox_stats;
pub use pod_sandbox_status::pod_sandbox_status;
pub use port_forward::port_forward;
pub use remove_pod_sandbox::remove_pod_sandbox;
pub use restore_pod::restore_pod;
pub use run_pod_sandbox::run_pod_sandbox;
pub use stop_pod_sandbox::stop_pod_sandbox;
pub use stream_pod_sandbox_metrics::stream_pod_sandbox_metrics;
pub use stream_pod_sandbox_stats::stream_pod_sandbox_stats;
pub use stream_pod_sandboxes::stream_pod_sandboxes;
pub use update_pod_sandbox_resources::update_pod_sandbox_resources;
