//! The services over a real unix socket, before there is anything behind them.

use std::fs::File;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Server};

use super::*;
use crate::config::CgroupDriver;
use crate::proto::cri::image_service_client::ImageServiceClient;
use crate::proto::cri::runtime_service_client::RuntimeServiceClient;
use crate::proto::cri::runtime_service_server::RuntimeServiceServer;
use crate::proto::cri::{self, image_service_server::ImageServiceServer};
use crate::rootless::{Cgroups, NodeKind};

fn facts() -> Facts {
    let namespace = || File::open("/dev/null").expect("/dev/null").into();
    let missing = vec!["memory limits: no cgroup v2".to_owned()];
    let cgroups = Cgroups { root: None, controllers: Vec::new(), missing };
    let config = Config {
        short_names: String::new(),
        pinned_images: Vec::new(),
        keep_blobs: false,
        policy: Vec::new(),
        fuse_overlayfs: "".into(),
        root: "/root-dir".into(),
        state: "/state-dir".into(),
        socket: "/state-dir/cricket.sock".into(),
        log_level: "info".to_owned(),
        registry_config_path: "/certs".into(),
        cgroup_driver: CgroupDriver::Cgroupfs,
        streaming_address: ([127, 0, 0, 1], 0).into(),
        cni_config_dir: "/net.d".into(),
        cni_plugin_dirs: Vec::new(),
        cni_timeout: std::time::Duration::from_secs(60),
        host_loopback: false,
        network_name: "cricket".to_owned(),
        pod_cidrs: Vec::new(),
        cdi_spec_dirs: Vec::new(),
        metrics_address: None,
        runtimes: Default::default(),
    };
    let node = Node {
        kind: NodeKind::Made,
        pid: 7,
        network: namespace(),
        uts: namespace(),
        ipc: namespace(),
        cgroups,
        executable: namespace(),
        lookout: None,
    };
    Facts { config: Arc::new(config), node: Arc::new(node) }
}

/// Serves on a socket of its own until the test ends.
async fn channel(name: &str) -> (Channel, PathBuf) {
    let path = std::env::temp_dir().join(format!("cricket-cri-{name}-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let services = Services::new(facts(), CancellationToken::new());
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let server = Server::builder()
        .add_service(RuntimeServiceServer::new(services.clone()))
        .add_service(ImageServiceServer::new(services));
    tokio::spawn(server.serve_with_incoming(incoming));
    (connect(&path).await, path)
}

async fn connect(path: &Path) -> Channel {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.expect("connected")
}

#[tokio::test]
async fn a_kubelet_that_comes_early_is_answered_and_told_to_wait() {
    let (channel, path) = channel("early").await;
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    for version in ["", "0.1.0", "v1"] {
        let answer = runtime.version(cri::VersionRequest { version: version.into() }).await.expect("Version");
        assert_eq!(answer.get_ref().version, "0.1.0");
        assert_eq!(answer.get_ref().runtime_api_version, "v1");
    }
    let status = runtime.status(cri::StatusRequest { verbose: true }).await.expect("Status").into_inner();
    let conditions = status.status.expect("a status").conditions;
    let names: Vec<_> = conditions.iter().map(|c| (c.r#type.as_str(), c.status)).collect();
    assert_eq!(names, [("RuntimeReady", false), ("NetworkReady", false)]);
    assert!(status.info["config"].contains("sandboxImage"));
    assert!(status.info["node"].contains("no cgroup v2"));
    let driver = runtime.runtime_config(cri::RuntimeConfigRequest {}).await.expect("RuntimeConfig").into_inner();
    assert_eq!(driver.linux.expect("linux").cgroup_driver(), cri::CgroupDriver::Cgroupfs);
    let list = runtime.list_containers(cri::ListContainersRequest::default()).await.expect_err("not yet");
    assert_eq!(list.code(), Code::Unavailable);
    let images = ImageServiceClient::new(channel).list_images(cri::ListImagesRequest::default()).await;
    assert_eq!(images.expect_err("not yet").code(), Code::Unavailable);
    std::fs::remove_file(path).expect("removed");
}

#[tokio::test]
async fn what_a_request_lacks_is_said_before_anything_is_looked_up() {
    let (channel, path) = channel("lacks").await;
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    let mut codes = vec![
        runtime.run_pod_sandbox(cri::RunPodSandboxRequest::default()).await.err(),
        runtime.stop_pod_sandbox(cri::StopPodSandboxRequest::default()).await.err(),
        runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest::default()).await.err(),
        runtime.pod_sandbox_status(cri::PodSandboxStatusRequest::default()).await.err(),
        runtime.create_container(cri::CreateContainerRequest::default()).await.err(),
        runtime.start_container(cri::StartContainerRequest::default()).await.err(),
        runtime.stop_container(cri::StopContainerRequest::default()).await.err(),
        runtime.remove_container(cri::RemoveContainerRequest::default()).await.err(),
        runtime.container_status(cri::ContainerStatusRequest::default()).await.err(),
        runtime.container_stats(cri::ContainerStatsRequest::default()).await.err(),
        runtime.pod_sandbox_stats(cri::PodSandboxStatsRequest::default()).await.err(),
        runtime.update_container_resources(cri::UpdateContainerResourcesRequest::default()).await.err(),
        runtime.update_pod_sandbox_resources(cri::UpdatePodSandboxResourcesRequest::default()).await.err(),
        runtime.exec_sync(cri::ExecSyncRequest::default()).await.err(),
        runtime.exec(cri::ExecRequest::default()).await.err(),
        runtime.attach(cri::AttachRequest::default()).await.err(),
        runtime.port_forward(cri::PortForwardRequest::default()).await.err(),
        runtime.reopen_container_log(cri::ReopenContainerLogRequest::default()).await.err(),
    ];
    let mut images = ImageServiceClient::new(channel);
    codes.push(images.image_status(cri::ImageStatusRequest::default()).await.err());
    codes.push(images.pull_image(cri::PullImageRequest::default()).await.err());
    codes.push(images.remove_image(cri::RemoveImageRequest::default()).await.err());
    for (call, status) in codes.into_iter().enumerate() {
        assert_eq!(status.expect("an error").code(), Code::InvalidArgument, "call {call}");
    }
    std::fs::remove_file(path).expect("removed");
}

#[tokio::test]
async fn what_is_not_here_is_unimplemented() {
    let (channel, path) = channel("unimplemented").await;
    let request = cri::CheckpointContainerRequest::default();
    let status = RuntimeServiceClient::new(channel).checkpoint_container(request).await.expect_err("not here");
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("CRIU"), "{status}");
    std::fs::remove_file(path).expect("removed");
}
