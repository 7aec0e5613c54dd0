//! How commands speak to the daemon: through the same CRI socket as everybody.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::Settings;
use crate::proto::cri::image_service_client::ImageServiceClient;
use crate::proto::cri::runtime_service_client::RuntimeServiceClient;
use crate::proto::cri::{self, ContainerStatus};
use crate::proto::cricket::cricket_client::CricketClient;

/// Largest answer: what the daemon sends at most.
const MESSAGE_BYTES: usize = 16 << 20;

/// Headers of an answer, error texts among them.
const HEADER_LIST_BYTES: u32 = 64 << 10;

/// A daemon that has just been started is waited for: it answers Unavailable until it has read its pods.
const STARTING_PATIENCE: Duration = Duration::from_secs(30);
const STARTING_PAUSE: Duration = Duration::from_millis(50);

/// The three services.
#[derive(Clone)]
pub struct Client {
    /// Pods and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// Images.
    pub images: ImageServiceClient<Channel>,
    /// Our own.
    pub cricket: CricketClient<Channel>,
}

impl Client {
    /// Connects to the daemon of these settings and waits until it is ready.
    pub async fn connect(settings: &Settings) -> anyhow::Result<Self> {
        let socket = settings.load()?.socket;
        let channel = channel(&socket).await?;
        let mut client = Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES),
            cricket: CricketClient::new(channel).max_decoding_message_size(MESSAGE_BYTES),
        };
        client.wait_until_ready().await?;
        Ok(client)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let ready = async {
            loop {
                let status = self.runtime.status(cri::StatusRequest::default()).await.map_err(told)?;
                let conditions = status.into_inner().status.unwrap_or_default().conditions;
                if conditions.iter().any(|condition| condition.r#type == "RuntimeReady" && condition.status) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(STARTING_PAUSE).await;
            }
        };
        let late = || anyhow!("the daemon is still starting after {STARTING_PATIENCE:?}: see its log");
        tokio::time::timeout(STARTING_PATIENCE, ready).await.map_err(|_| late())?
    }

    /// The container that `name` means: an id, a unique beginning of one, the name of a container or of a pod with
    /// one container.
    pub async fn find_container(&mut self, name: &str) -> anyhow::Result<cri::Container> {
        let containers = self.runtime.list_containers(cri::ListContainersRequest::default()).await.map_err(told)?;
        let pods = self.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.map_err(told)?;
        let pods = pods.into_inner().items;
        super::lookup::container(name, containers.into_inner().containers, &pods)
    }

    /// The pod that `name` means: an id, a unique beginning of one, or a name.
    pub async fn find_pod(&mut self, name: &str) -> anyhow::Result<cri::PodSandbox> {
        let pods = self.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.map_err(told)?;
        super::lookup::pod(name, pods.into_inner().items)
    }

    /// The status of a container by its full id.
    pub async fn container_status(&mut self, id: &str) -> anyhow::Result<ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let status = self.runtime.container_status(request).await.map_err(told)?.into_inner().status;
        status.with_context(|| format!("container {id}: the daemon gave no status"))
    }
}

async fn channel(socket: &Path) -> anyhow::Result<Channel> {
    // The first attempt is made here, because the channel would hide its reason.
    let first = UnixStream::connect(socket).await.map_err(|error| not_there(socket, &error))?;
    let mut first = Some(first);
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let (path, first) = (path.clone(), first.take());
        async move {
            match first {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => UnixStream::connect(path).await.map(TokioIo::new),
            }
        }
    });
    Endpoint::from_static("http://localhost")
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("cannot speak to the daemon at {}", socket.display()))
}

fn not_there(socket: &Path, error: &io::Error) -> anyhow::Error {
    let path = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => anyhow!(
            "no daemon listens at {path}: start one with `cricket serve`, or say where it is with --socket or --state"
        ),
        io::ErrorKind::PermissionDenied => {
            anyhow!(
                "the daemon at {path} belongs to another user: run this as that user, or start your own with `cricket serve`"
            )
        }
        _ => anyhow!("cannot connect to {path}: {error}"),
    }
}

/// A refusal in one line, without the words of gRPC.
pub fn told(status: Status) -> anyhow::Error {
    let message = status.message().trim();
    match status.code() {
        Code::Unimplemented => anyhow!("this daemon cannot do that: {message}"),
        Code::Unavailable if message.is_empty() => anyhow!("the daemon is gone: start it with `cricket serve`"),
        _ if message.is_empty() => anyhow!("the daemon refused: {}", status.code()),
        _ => anyhow!("{}", message.replace('\n', " ")),
    }
}

/// Runs a command's future on one thread.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    let result = runtime.block_on(future);
    // A read of the terminal that nobody waits for any more must not hold up the end.
    runtime.shutdown_background();
    result
}
