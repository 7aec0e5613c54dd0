//! Pods and containers as a kubelet asks for them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cricket::proto::cri;
use futures_util::StreamExt;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::node::Node;

/// For a container to end by itself.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often is looked whether it has: seldom, for the daemon pays for the answer.
const GLANCE: Duration = Duration::from_millis(250);
/// Host ports begin here: below those that the kernel gives away.
const FIRST_PORT: i32 = 20_000;

/// Of remotecommand.
const STDOUT: u8 = 1;

/// A pod that runs.
pub struct Pod {
    /// Its id.
    pub id: String,
    config: cri::PodSandboxConfig,
}

/// A number that nothing else here has.
fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Node {
    /// RunPodSandbox.
    pub async fn run_pod(&self) -> anyhow::Result<Pod> {
        let name = format!("bench-{}", unique());
        let directory = self.logs().join(&name);
        std::fs::create_dir_all(&directory)?;
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                uid: format!("uid-{name}"),
                name,
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            log_directory: directory.display().to_string(),
            port_mappings: self.port_mappings(),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(self.namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let answer = self.runtime.clone().run_pod_sandbox(request).await.context("RunPodSandbox")?;
        Ok(Pod { id: answer.into_inner().pod_sandbox_id, config })
    }

    fn port_mappings(&self) -> Vec<cri::PortMapping> {
        let port = FIRST_PORT + unique().cast_signed();
        let tcp = |host_port| cri::PortMapping { container_port: 80, host_port, ..Default::default() };
        self.publish.then(|| tcp(port)).into_iter().collect()
    }

    fn namespaces(&self) -> cri::NamespaceOption {
        cri::NamespaceOption {
            network: self.network.into(),
            pid: cri::NamespaceMode::Container.into(),
            ipc: cri::NamespaceMode::Pod.into(),
            ..Default::default()
        }
    }

    /// CreateContainer, with the usual restrictions.
    pub async fn create(&self, pod: &Pod, command: &[&str]) -> anyhow::Result<String> {
        let name = format!("c{}", unique());
        let config = cri::ContainerConfig {
            log_path: format!("{name}.log"),
            metadata: Some(cri::ContainerMetadata { name, attempt: 0 }),
            image: Some(cri::ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(self.namespaces()),
                    seccomp: Some(cri::SecurityProfile { profile_type: self.seccomp.into(), ..Default::default() }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer = self.runtime.clone().create_container(request).await.context("CreateContainer")?;
        Ok(answer.into_inner().container_id)
    }

    /// StartContainer.
    pub async fn start_container(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().start_container(request).await.context("StartContainer")?;
        Ok(())
    }

    /// ExecSync.
    pub async fn exec(&self, id: &str, command: &[&str]) -> anyhow::Result<()> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 10 };
        let answer = self.runtime.clone().exec_sync(request).await.context("ExecSync")?.into_inner();
        if answer.exit_code != 0 {
            bail!("ExecSync {command:?}: exit code {}", answer.exit_code);
        }
        Ok(())
    }

    /// A file of so many bytes in the container, for [`Node::stream`].
    pub async fn make_large(&self, id: &str, bytes: u64) -> anyhow::Result<()> {
        self.exec(id, &["sh", "-c", &format!("head -c {bytes} /dev/zero >/large")]).await
    }

    /// Exec, over WebSocket: `cat` of that file.
    pub async fn stream(&self, id: &str, bytes: u64) -> anyhow::Result<()> {
        let request = cri::ExecRequest {
            container_id: id.to_owned(),
            cmd: ["cat", "/large"].map(str::to_owned).to_vec(),
            stdout: true,
            ..Default::default()
        };
        let url = self.runtime.clone().exec(request).await.context("Exec")?.into_inner().url;
        let mut request = url.replace("http://", "ws://").into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", "v4.channel.k8s.io".parse()?);
        let authority = request.uri().authority().context("an authority")?.to_string();
        let socket = tokio::net::TcpStream::connect(authority).await.context("dialling the session")?;
        let mut session = tokio_tungstenite::client_async(request, socket).await.context("upgrading")?.0;
        let mut received = 0;
        while let Some(Ok(message)) = session.next().await {
            match message {
                Message::Binary(piece) if piece.first() == Some(&STDOUT) => received += piece.len() as u64 - 1,
                Message::Close(_) => break,
                _ => {}
            }
        }
        anyhow::ensure!(received == bytes, "{received} of {bytes} bytes arrived");
        Ok(())
    }

    /// StopContainer without grace.
    pub async fn stop_container(&self, id: &str) -> anyhow::Result<()> {
        let stop = cri::StopContainerRequest { container_id: id.to_owned(), timeout: 0 };
        self.runtime.clone().stop_container(stop).await.context("StopContainer")?;
        Ok(())
    }

    /// RemoveContainer, of one that has ended.
    pub async fn delete_container(&self, id: &str) -> anyhow::Result<()> {
        let remove = cri::RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().remove_container(remove).await.context("RemoveContainer")?;
        Ok(())
    }

    /// Both.
    pub async fn remove_container(&self, id: &str) -> anyhow::Result<()> {
        self.stop_container(id).await?;
        self.delete_container(id).await
    }

    /// StopPodSandbox.
    pub async fn stop_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.clone().stop_pod_sandbox(stop).await.context("StopPodSandbox")?;
        Ok(())
    }

    /// RemovePodSandbox, of one that is stopped.
    pub async fn delete_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.clone().remove_pod_sandbox(remove).await.context("RemovePodSandbox")?;
        Ok(())
    }

    /// Both.
    pub async fn remove_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        self.stop_pod(pod).await?;
        self.delete_pod(pod).await
    }

    /// Waits until a container has ended.
    pub async fn wait(&self, id: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
            let answer = self.runtime.clone().container_status(request).await.context("ContainerStatus")?;
            let status = answer.into_inner().status.context("a status")?;
            if status.state() == cri::ContainerState::ContainerExited {
                if status.exit_code != 0 {
                    bail!("the container ended with {}: {} {}", status.exit_code, status.reason, status.message);
                }
                return Ok(());
            }
            tokio::time::sleep(GLANCE).await;
        }
        bail!("the container has not ended after {PATIENCE:?}")
    }
}
