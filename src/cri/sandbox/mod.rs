//! RPCs about pod sandboxes.

mod list_pod_sandbox;
mod pod_sandbox_status;
mod port_forward;
mod remove_pod_sandbox;
mod run_pod_sandbox;
mod stop_pod_sandbox;
mod stream_pod_sandboxes;

pub use list_pod_sandbox::list_pod_sandbox;
pub use pod_sandbox_status::pod_sandbox_status;
pub use port_forward::port_forward;
pub use remove_pod_sandbox::remove_pod_sandbox;
pub use run_pod_sandbox::run_pod_sandbox;
pub use stop_pod_sandbox::stop_pod_sandbox;
pub use stream_pod_sandboxes::stream_pod_sandboxes;
