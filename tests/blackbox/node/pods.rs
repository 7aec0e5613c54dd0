//! Requests for pods and containers as a kubelet would send them, and the logs that they write.

use std::path::{Path, PathBuf};

use cricket::proto::cri;

use super::Node;

/// The image that the binary carries.
pub const DEMO: &str = cricket::demo::NAME;

/// A pod on the node's network, so that no test here needs a pod network.
pub fn pod(node: &Node, name: &str) -> cri::PodSandboxConfig {
    let directory = node.logs().join(name);
    std::fs::create_dir_all(&directory).expect("a directory of ours");
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        log_directory: directory.display().to_string(),
        labels: [("test".to_owned(), name.to_owned())].into(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: cri::NamespaceMode::Node.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// A container from the demo image that runs `command`; it logs to `NAME.log`.
pub fn container(name: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: DEMO.to_owned(), ..Default::default() }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Node {
    /// Runs a pod and answers its id.
    pub async fn run_pod(&self, config: &cri::PodSandboxConfig) -> String {
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        self.runtime().await.run_pod_sandbox(request).await.expect("RunPodSandbox").into_inner().pod_sandbox_id
    }

    /// Creates and starts a container and answers its id.
    pub async fn start_container(
        &self,
        pod_id: &str,
        config: cri::ContainerConfig,
        pod_config: &cri::PodSandboxConfig,
    ) -> String {
        let id = self.create_container(pod_id, config, pod_config).await;
        let request = cri::StartContainerRequest { container_id: id.clone() };
        self.runtime().await.start_container(request).await.expect("StartContainer");
        id
    }

    /// Creates a container and answers its id.
    pub async fn create_container(
        &self,
        pod_id: &str,
        config: cri::ContainerConfig,
        pod_config: &cri::PodSandboxConfig,
    ) -> String {
        let request = create_request(pod_id, config, pod_config);
        self.runtime().await.create_container(request).await.expect("CreateContainer").into_inner().container_id
    }

    /// A container's status.
    pub async fn container_status(&self, id: &str) -> cri::ContainerStatus {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime().await.container_status(request).await.expect("ContainerStatus");
        answer.into_inner().status.expect("a status")
    }

    /// A pod's status.
    pub async fn pod_status(&self, id: &str) -> cri::PodSandboxStatus {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime().await.pod_sandbox_status(request).await.expect("PodSandboxStatus");
        answer.into_inner().status.expect("a status")
    }

    /// Waits until a container has exited and answers its status.
    pub async fn exit_of(&self, id: &str) -> cri::ContainerStatus {
        super::eventually_async("the container has exited", async || {
            let status = self.container_status(id).await;
            (status.state() == cri::ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// Runs a command in a container to its end.
    pub async fn exec(&self, id: &str, command: &[&str], timeout: i64) -> Result<cri::ExecSyncResponse, tonic::Status> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        self.runtime().await.exec_sync(request).await.map(tonic::Response::into_inner)
    }

    /// Stops and removes a pod with all that is in it.
    pub async fn remove_pod(&self, id: &str) {
        let mut runtime = self.runtime().await;
        let pod_sandbox_id = id.to_owned();
        runtime
            .stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() })
            .await
            .expect("stop");
        runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await.expect("remove");
    }

    /// Where a container of [`container`] in a pod of [`pod`] logs.
    pub fn log_of(&self, pod: &str, container: &str) -> PathBuf {
        self.logs().join(pod).join(format!("{container}.log"))
    }
}

/// As a kubelet sends it.
pub fn create_request(
    pod_id: &str,
    config: cri::ContainerConfig,
    pod_config: &cri::PodSandboxConfig,
) -> cri::CreateContainerRequest {
    cri::CreateContainerRequest {
        pod_sandbox_id: pod_id.to_owned(),
        config: Some(config),
        sandbox_config: Some(pod_config.clone()),
    }
}

/// A line of a container's log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub stream: String,
    pub whole: bool,
    pub content: String,
}

/// Reads a log file; a line that is not of CRI's form fails the test.
#[track_caller]
pub fn log_lines(path: &Path) -> Vec<LogLine> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .map(|line| {
            let mut fields = line.splitn(4, ' ');
            let mut field = || fields.next().unwrap_or_else(|| panic!("{}: not a log line: {line:?}", path.display()));
            let (time, stream, tag, content) = (field(), field(), field(), field());
            let format = &time::format_description::well_known::Rfc3339;
            assert!(time::OffsetDateTime::parse(time, format).is_ok(), "not a time: {line:?}");
            assert!(matches!(stream, "stdout" | "stderr"), "no such stream: {line:?}");
            assert!(matches!(tag, "P" | "F"), "no such tag: {line:?}");
            LogLine { stream: stream.to_owned(), whole: tag == "F", content: content.to_owned() }
        })
        .collect()
}
