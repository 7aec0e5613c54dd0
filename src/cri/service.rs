//! The three gRPC services: each RPC is given to the handler that bears its name.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tonic::codegen::BoxStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument;

use super::{Services, container, cricket, image, runtime, sandbox, status};
use crate::proto::cri;
use crate::proto::cricket as own;

/// Implements a service: `rpc(Request) -> Answer = folder;` calls `folder::rpc(services, request)`.
macro_rules! service {
    ($service:path { $($rpc:ident($request:ty) -> $answer:ty = $folder:ident;)* }) => {
        #[tonic::async_trait]
        impl $service for Services {
            $(async fn $rpc(&self, request: Request<$request>) -> Result<Response<$answer>, Status> {
                let begun = Instant::now();
                let call = async {
                    let result = $folder::$rpc(self, request.into_inner()).await;
                    self.finish(stringify!($rpc), begun, result)
                };
                call.instrument(span(stringify!($rpc))).await
            })*
        }
    };
}

service!(cri::runtime_service_server::RuntimeService {
    version(cri::VersionRequest) -> cri::VersionResponse = runtime;
    status(cri::StatusRequest) -> cri::StatusResponse = runtime;
    runtime_config(cri::RuntimeConfigRequest) -> cri::RuntimeConfigResponse = runtime;
    update_runtime_config(cri::UpdateRuntimeConfigRequest) -> cri::UpdateRuntimeConfigResponse = runtime;
    get_container_events(cri::GetEventsRequest) -> BoxStream<cri::ContainerEventResponse> = runtime;
    list_metric_descriptors(cri::ListMetricDescriptorsRequest) -> cri::ListMetricDescriptorsResponse = runtime;
    run_pod_sandbox(cri::RunPodSandboxRequest) -> cri::RunPodSandboxResponse = sandbox;
    stop_pod_sandbox(cri::StopPodSandboxRequest) -> cri::StopPodSandboxResponse = sandbox;
    remove_pod_sandbox(cri::RemovePodSandboxRequest) -> cri::RemovePodSandboxResponse = sandbox;
    pod_sandbox_status(cri::PodSandboxStatusRequest) -> cri::PodSandboxStatusResponse = sandbox;
    list_pod_sandbox(cri::ListPodSandboxRequest) -> cri::ListPodSandboxResponse = sandbox;
    stream_pod_sandboxes(cri::StreamPodSandboxesRequest) -> BoxStream<cri::StreamPodSandboxesResponse> = sandbox;
    pod_sandbox_stats(cri::PodSandboxStatsRequest) -> cri::PodSandboxStatsResponse = sandbox;
    list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest) -> cri::ListPodSandboxStatsResponse = sandbox;
    stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest) -> BoxStream<cri::StreamPodSandboxStatsResponse> = sandbox;
    list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest) -> cri::ListPodSandboxMetricsResponse = sandbox;
    stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest)
        -> BoxStream<cri::StreamPodSandboxMetricsResponse> = sandbox;
    update_pod_sandbox_resources(cri::UpdatePodSandboxResourcesRequest)
        -> cri::UpdatePodSandboxResourcesResponse = sandbox;
    checkpoint_pod(cri::CheckpointPodRequest) -> cri::CheckpointPodResponse = sandbox;
    restore_pod(cri::RestorePodRequest) -> cri::RestorePodResponse = sandbox;
    port_forward(cri::PortForwardRequest) -> cri::PortForwardResponse = sandbox;
    create_container(cri::CreateContainerRequest) -> cri::CreateContainerResponse = container;
    start_container(cri::StartContainerRequest) -> cri::StartContainerResponse = container;
    stop_container(cri::StopContainerRequest) -> cri::StopContainerResponse = container;
    remove_container(cri::RemoveContainerRequest) -> cri::RemoveContainerResponse = container;
    container_status(cri::ContainerStatusRequest) -> cri::ContainerStatusResponse = container;
    list_containers(cri::ListContainersRequest) -> cri::ListContainersResponse = container;
    stream_containers(cri::StreamContainersRequest) -> BoxStream<cri::StreamContainersResponse> = container;
    container_stats(cri::ContainerStatsRequest) -> cri::ContainerStatsResponse = container;
    list_container_stats(cri::ListContainerStatsRequest) -> cri::ListContainerStatsResponse = container;
    stream_container_stats(cri::StreamContainerStatsRequest)
        -> BoxStream<cri::StreamContainerStatsResponse> = container;
    update_container_resources(cri::UpdateContainerResourcesRequest)
        -> cri::UpdateContainerResourcesResponse = container;
    checkpoint_container(cri::CheckpointContainerRequest) -> cri::CheckpointContainerResponse = container;
    exec_sync(cri::ExecSyncRequest) -> cri::ExecSyncResponse = container;
    exec(cri::ExecRequest) -> cri::ExecResponse = container;
    attach(cri::AttachRequest) -> cri::AttachResponse = container;
    reopen_container_log(cri::ReopenContainerLogRequest) -> cri::ReopenContainerLogResponse = container;
});

service!(cri::image_service_server::ImageService {
    list_images(cri::ListImagesRequest) -> cri::ListImagesResponse = image;
    stream_images(cri::StreamImagesRequest) -> BoxStream<cri::StreamImagesResponse> = image;
    image_status(cri::ImageStatusRequest) -> cri::ImageStatusResponse = image;
    pull_image(cri::PullImageRequest) -> cri::PullImageResponse = image;
    remove_image(cri::RemoveImageRequest) -> cri::RemoveImageResponse = image;
    image_fs_info(cri::ImageFsInfoRequest) -> cri::ImageFsInfoResponse = image;
});

service!(own::cricket_server::Cricket {
    load_images(Streaming<own::LoadImagesRequest>) -> BoxStream<own::LoadImagesResponse> = cricket;
    pull_image(own::PullImageRequest) -> BoxStream<own::PullImageResponse> = cricket;
    save_images(own::SaveImagesRequest) -> BoxStream<own::SaveImagesResponse> = cricket;
    verify_images(own::VerifyImagesRequest) -> BoxStream<own::VerifyImagesResponse> = cricket;
    prune_images(own::PruneImagesRequest) -> own::PruneImagesResponse = cricket;
    node(own::NodeRequest) -> own::NodeResponse = cricket;
    ports(own::PortsRequest) -> own::PortsResponse = cricket;
});

/// Around all that is logged for a call, also by the work that it begins: the number is no other call's of this daemon.
fn span(rpc: &'static str) -> tracing::Span {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    tracing::info_span!("call", id = NEXT.fetch_add(1, Ordering::Relaxed), rpc)
}

impl Services {
    /// Logs how a call ended, once; a client's own mistakes only when asked for. Tells the observer.
    fn finish<T>(&self, rpc: &'static str, begun: Instant, result: Result<T, Status>) -> Result<Response<T>, Status> {
        match &result {
            Ok(_) => tracing::trace!("answered"),
            Err(e) if status::is_our_fault(e.code()) => tracing::error!(code = ?e.code(), "{}", e.message()),
            Err(e) => tracing::debug!(code = ?e.code(), "{}", e.message()),
        }
        if let Some(observer) = self.shared.observer.get() {
            let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
            observer.ended(rpc, status::name(code), begun.elapsed());
        }
        result.map(Response::new)
    }
}
