//! The daemon that is measured: started in a directory of its own, spoken to over its CRI socket, ended.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cri::runtime_service_client::RuntimeServiceClient;
use cricket::proto::cri;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tonic::transport::{Channel, Endpoint};

/// For the daemon to be ready, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often is looked.
const GLANCE: Duration = Duration::from_millis(20);
/// What a client takes as one message, as kubelets have it.
const MESSAGE_LIMIT: usize = 16 << 20;
/// Lines of the daemon's log that are shown when something fails.
const LAST_WORDS: usize = 30;

/// The program, and where it keeps things.
#[derive(Debug, Clone)]
struct Place {
    binary: PathBuf,
    directory: PathBuf,
    state: PathBuf,
}

/// See the module.
pub struct Node {
    place: Place,
    daemon: i32,
    /// Of the runtime service; cloned by who makes calls side by side.
    pub runtime: RuntimeServiceClient<Channel>,
    /// What pods get.
    pub network: cri::NamespaceMode,
    /// Whether each pod has a host port of its own.
    pub publish: bool,
    /// What containers get.
    pub seccomp: cri::security_profile::ProfileType,
    /// The name of the image that was loaded.
    pub image: String,
}

impl Node {
    /// Starts a daemon and waits until it says that it is ready.
    pub async fn start(binary: &Path, directory: &Path, state: &Path) -> anyhow::Result<Self> {
        let place = Place { binary: binary.to_owned(), directory: directory.to_owned(), state: state.to_owned() };
        std::fs::create_dir_all(directory.join("logs"))?;
        let mut node = Self {
            daemon: place.serve()?,
            runtime: RuntimeServiceClient::new(place.dial()).max_decoding_message_size(MESSAGE_LIMIT),
            network: cri::NamespaceMode::Pod,
            publish: false,
            seccomp: cri::security_profile::ProfileType::RuntimeDefault,
            image: String::new(),
            place,
        };
        node.wait_until_ready().await?;
        Ok(node)
    }

    /// A daemon that somebody else has started and ends; only requests are made.
    pub fn of_other(socket: &Path, directory: &Path) -> Self {
        let place = Place { binary: PathBuf::new(), directory: directory.to_owned(), state: PathBuf::new() };
        Self {
            daemon: 0,
            runtime: RuntimeServiceClient::new(dial(socket.to_owned())).max_decoding_message_size(MESSAGE_LIMIT),
            network: cri::NamespaceMode::Pod,
            publish: false,
            seccomp: cri::security_profile::ProfileType::RuntimeDefault,
            image: String::new(),
            place,
        }
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let answer = self.runtime.status(cri::StatusRequest::default()).await;
            let conditions = answer.ok().and_then(|answer| answer.into_inner().status).unwrap_or_default().conditions;
            if conditions.iter().any(|condition| condition.r#type == "RuntimeReady" && condition.status) {
                return Ok(());
            }
            tokio::time::sleep(GLANCE).await;
        }
        bail!("the daemon is not ready after {PATIENCE:?}:\n{}", self.last_words());
    }

    /// Kills the daemon as the kernel would and starts another, which finds the pods again.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let daemon = Pid::from_raw(self.daemon);
        kill(daemon, Signal::SIGKILL).context("killing the daemon")?;
        waitpid(daemon, None).context("waiting for the daemon")?;
        self.daemon = self.place.serve()?;
        self.wait_until_ready().await
    }

    /// Loads an image from an archive; containers run it from then on.
    pub async fn load(&mut self, archive: &Path) -> anyhow::Result<()> {
        let output = self.place.cricket().args(["image", "load"]).arg(archive).output()?;
        if !output.status.success() {
            bail!("cricket image load: {}", String::from_utf8_lossy(&output.stderr));
        }
        let channel = self.place.dial();
        let mut images = cri::image_service_client::ImageServiceClient::new(channel);
        let list = images.list_images(cri::ListImagesRequest::default()).await?.into_inner();
        let names = list.images.into_iter().flat_map(|image| image.repo_tags);
        self.image = names.into_iter().find(|name| name.contains("busybox")).context("the archive has no busybox")?;
        Ok(())
    }

    /// The daemon's process id.
    pub fn daemon_pid(&self) -> i32 {
        self.daemon
    }

    /// Where pods log.
    pub fn logs(&self) -> PathBuf {
        self.place.directory.join("logs")
    }

    /// The end of the daemon's log.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.place.directory.join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }

    /// Ends the pods, the daemon and the node, and removes what is on disk.
    pub fn stop(&self) -> anyhow::Result<()> {
        // Files of snapshots belong to subordinate ids: only the node's root can remove them.
        let root = self.place.directory.join("root");
        let _ = self.place.cricket().args(["enter", "--", "rm", "-rf"]).arg(root).output();
        let output = self.place.cricket().args(["stop", "--pods"]).output()?;
        if !output.status.success() {
            bail!("cricket stop: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

impl Place {
    fn serve(&self) -> anyhow::Result<i32> {
        let log = File::options().create(true).append(true).open(self.directory.join("daemon.log"))?;
        let mut command = self.cricket();
        command.arg("serve").stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", self.binary.display()))?;
        Ok(child.id().cast_signed())
    }

    fn cricket(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("CRICKET_ROOT", self.directory.join("root")).env("CRICKET_STATE", &self.state);
        command.env("CRICKET_SOCKET", self.socket()).stdin(Stdio::null());
        command
    }

    fn socket(&self) -> PathBuf {
        self.state.join("cricket.sock")
    }

    fn dial(&self) -> Channel {
        dial(self.socket())
    }
}

fn dial(socket: PathBuf) -> Channel {
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
}
