//! `cricket run`: a pod with one container from an image, its output here and its exit status ours.
//!
//! ```text
//! image here? else pull -> log directory -> RunPodSandbox -> CreateContainer -> (attach) -> StartContainer
//!   -> output from the log file (or the terminal) until it exits -> StopPodSandbox, RemovePodSandbox, log removed
//! ```
//!
//! Output without a terminal is read from the log: nothing is lost between start and attach, nor while the daemon is
//! away. Everything that was made is removed again on every way out, unless `--detach` was asked for and succeeded.

mod port;
mod request;
mod volume;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Client, block_on, told};
use super::image::pull::pull;
use super::log_file::{LogFile, follow};
use super::session::{Session, Wants, as_exit_code};
use super::{Settings, table, wait};
use crate::proto::cri;

/// Time for the container to end by itself when we are told to.
const STOP_TIMEOUT_SECONDS: i64 = 10;

/// Added to a signal's number when it ends a process, as shells say it.
const SIGNAL_STATUS: u8 = 128;

/// Arguments of `cricket run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the pod and its container; by default after the image
    #[arg(long)]
    name: Option<String>,
    /// Do not wait: print the container's id and leave it running
    #[arg(short, long)]
    detach: bool,
    /// Remove everything when it has ended (always so without --detach)
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Give it this terminal's input
    #[arg(short, long, conflicts_with = "detach")]
    interactive: bool,
    /// Set a variable; without a value, with the one it has here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Mount a file or directory
    #[arg(short, long, value_name = "SOURCE:DESTINATION[:ro]")]
    volume: Vec<String>,
    /// Reach a port of the container at a port of the host
    #[arg(short, long, value_name = "[ADDRESS:]PORT:PORT[/udp]")]
    publish: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, and group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Which network it has
    #[arg(long, value_enum, default_value_t)]
    network: request::Network,
    /// Program to run instead of the image's
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Make the image's file system read-only
    #[arg(long)]
    read_only: bool,
    /// The image; pulled if it is not here
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    image: String,
    /// Arguments, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs it.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    block_on(start(args, settings)).map(ExitCode::from)
}

async fn start(args: Args, settings: &Settings) -> anyhow::Result<u8> {
    let plan = request::Plan::new(&args)?;
    let mut client = Client::connect(settings).await?;
    if let Some(name) = &args.name {
        check_free(&mut client, name).await?;
    }
    ensure_image(&mut client, &args.image).await?;
    let node = client.cricket.node(crate::proto::cricket::NodeRequest {}).await.map_err(told)?.into_inner();
    let mut pod = Pod { log_directory: plan.log_directory(Path::new(&node.log_directory)), id: None };
    let detach = args.detach;
    let mut running = client.clone();
    let result = tokio::select! {
        result = pod.run(&mut running, &plan, detach) => result,
        signal = ending_signal() => signal.map(|number| SIGNAL_STATUS + number),
    };
    if detach && result.is_ok() {
        return result;
    }
    let removed = pod.remove(&mut client).await;
    let status = result?;
    removed?;
    Ok(status)
}

/// A name that a person gave means one pod.
async fn check_free(client: &mut Client, name: &str) -> anyhow::Result<()> {
    let pods = client.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.map_err(told)?;
    let has_it = |pod: &cri::PodSandbox| {
        pod.metadata.as_ref().is_some_and(|metadata| metadata.name == name && metadata.namespace == request::NAMESPACE)
    };
    match pods.into_inner().items.iter().find(|pod| has_it(pod)) {
        Some(pod) => bail!("pod {} has the name {name} already: `cricket rm {name}` first, or give another", pod.id),
        None => Ok(()),
    }
}

/// Pulls the image if it is not here.
async fn ensure_image(client: &mut Client, name: &str) -> anyhow::Result<()> {
    let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
    let request = cri::ImageStatusRequest { image, verbose: false };
    if client.images.image_status(request).await.map_err(told)?.into_inner().image.is_none() {
        pull(client, name, None, true).await?;
    }
    Ok(())
}

/// The number of the signal that tells us to end.
async fn ending_signal() -> anyhow::Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => libc::SIGINT,
        _ = terminate.recv() => libc::SIGTERM,
        _ = hang_up.recv() => libc::SIGHUP,
    } as u8)
}

/// What has been made so far.
struct Pod {
    log_directory: PathBuf,
    id: Option<String>,
}

impl Pod {
    async fn run(&mut self, client: &mut Client, plan: &request::Plan, detach: bool) -> anyhow::Result<u8> {
        std::fs::create_dir_all(&self.log_directory)
            .with_context(|| format!("cannot make {}", self.log_directory.display()))?;
        let sandbox = plan.sandbox(&self.log_directory);
        let request = cri::RunPodSandboxRequest { config: Some(sandbox.clone()), runtime_handler: String::new() };
        let pod_id = client.runtime.run_pod_sandbox(request).await.map_err(told)?.into_inner().pod_sandbox_id;
        self.id = Some(pod_id.clone());
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod_id,
            config: Some(plan.container()),
            sandbox_config: Some(sandbox),
        };
        let id = client.runtime.create_container(request).await.map_err(told)?.into_inner().container_id;
        if detach {
            start_container(client, &id).await?;
            table::say(&id)?;
            return Ok(0);
        }
        self.converse(client, plan, &id).await
    }

    /// Starts it and carries its streams until it has exited.
    async fn converse(&self, client: &mut Client, plan: &request::Plan, id: &str) -> anyhow::Result<u8> {
        let log = LogFile::open(&self.log_directory.join(request::LOG_FILE), None, false)?;
        let session = match plan.interactive {
            true => attach_and_start(client, plan, id).await?,
            false => {
                start_container(client, id).await?;
                None
            }
        };
        let wants = Wants { stdin: true, tty: plan.tty };
        let mut waiting = client.clone();
        let status = match session {
            Some(session) if plan.tty => {
                session.run(wants).await?;
                wait::exited(&mut waiting, id).await?
            }
            Some(session) => {
                // The input's end is not the container's; its output is in the log.
                let input = async {
                    let _ = session.run(wants).await;
                    std::future::pending::<std::convert::Infallible>().await
                };
                tokio::select! {
                    status = follow(log, wait::exited(&mut waiting, id)) => status??,
                    never = input => match never {},
                }
            }
            None => follow(log, wait::exited(&mut waiting, id)).await??,
        };
        Ok(as_exit_code(status.exit_code))
    }

    /// Stops and removes what was made; each step is tried.
    async fn remove(&self, client: &mut Client) -> anyhow::Result<()> {
        let removed = match &self.id {
            Some(id) => remove_pod(client, id).await,
            None => Ok(()),
        };
        match std::fs::remove_dir_all(&self.log_directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => removed.and(Err(error.into())),
            _ => removed,
        }
    }
}

async fn start_container(client: &mut Client, id: &str) -> anyhow::Result<()> {
    let request = cri::StartContainerRequest { container_id: id.to_owned() };
    client.runtime.start_container(request).await.map_err(told)?;
    Ok(())
}

/// Attached before the start where the daemon allows it, so that no prompt is missed; else right after. None if the
/// container ended before: what it wrote is in its log.
async fn attach_and_start(client: &mut Client, plan: &request::Plan, id: &str) -> anyhow::Result<Option<Session>> {
    let early = match attach_url(client, plan, id).await {
        Ok(url) => Session::dial(&url).await.ok(),
        Err(_) => None,
    };
    start_container(client, id).await?;
    if early.is_some() {
        return Ok(early);
    }
    let late = match attach_url(client, plan, id).await {
        Ok(url) => Session::dial(&url).await.map(Some),
        Err(error) => Err(error),
    };
    match late {
        Err(_) if client.container_status(id).await?.state() == cri::ContainerState::ContainerExited => Ok(None),
        late => late,
    }
}

/// With a terminal, input and output; without, input only.
async fn attach_url(client: &mut Client, plan: &request::Plan, id: &str) -> anyhow::Result<String> {
    let request =
        cri::AttachRequest { container_id: id.to_owned(), stdin: true, tty: plan.tty, stdout: plan.tty, stderr: false };
    Ok(client.runtime.attach(request).await.map_err(told)?.into_inner().url)
}

/// Stops the containers with time to end, then the pod, and removes all of it.
pub async fn remove_pod(client: &mut Client, id: &str) -> anyhow::Result<()> {
    let filter = Some(cri::ContainerFilter { pod_sandbox_id: id.to_owned(), ..Default::default() });
    let containers = client.runtime.list_containers(cri::ListContainersRequest { filter }).await.map_err(told)?;
    for container in containers.into_inner().containers {
        let request = cri::StopContainerRequest { container_id: container.id, timeout: STOP_TIMEOUT_SECONDS };
        client.runtime.stop_container(request).await.map_err(told)?;
    }
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.runtime.stop_pod_sandbox(stop).await.map_err(told)?;
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.runtime.remove_pod_sandbox(remove).await.map_err(told)?;
    Ok(())
}
