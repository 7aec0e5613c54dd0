//! `cricket image pull`.

use anyhow::{Context, bail};

use crate::cli::client::{Client, told};
use crate::cli::progress::Progress;
use crate::cli::{Settings, table};
use crate::proto::cricket::pull_image_response::Message;
use crate::proto::cricket::{LoadedImage, PullImageRequest};

/// Where credentials are taken from so that they are not seen in a list of processes.
const CREDENTIALS_VARIABLE: &str = "CRICKET_CREDS";

/// Arguments of `cricket image pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print only the image's id
    #[arg(short, long)]
    quiet: bool,
    /// Credentials for the registry
    #[arg(long, value_name = "USER:PASSWORD", env = CREDENTIALS_VARIABLE, hide_env_values = true)]
    creds: Option<String>,
    /// The image: registry/repository:tag or registry/repository@digest
    image: String,
}

/// Runs it.
pub async fn run(args: Args, settings: &Settings) -> anyhow::Result<()> {
    let mut client = Client::connect(settings).await?;
    let credentials = args.creds.as_deref().map(split).transpose()?;
    let image = pull(&mut client, &args.image, credentials, !args.quiet).await?;
    if args.quiet {
        return table::say(&image.id);
    }
    table::say(&format!("{} {}", table::short_id(&image.id), image.names.join(", ")))
}

fn split(credentials: &str) -> anyhow::Result<(&str, &str)> {
    credentials.split_once(':').context("--creds: USER:PASSWORD is expected")
}

/// Pulls with bars on a terminal, if wanted.
pub async fn pull(
    client: &mut Client,
    reference: &str,
    credentials: Option<(&str, &str)>,
    bars: bool,
) -> anyhow::Result<LoadedImage> {
    let (username, password) = credentials.unwrap_or_default();
    let request = PullImageRequest {
        reference: reference.to_owned(),
        username: username.to_owned(),
        password: password.to_owned(),
    };
    let mut messages = client.cricket.pull_image(request).await.map_err(told)?.into_inner();
    let mut progress = Progress::new(bars);
    let mut image = None;
    let result = loop {
        match messages.message().await {
            Ok(Some(message)) => match message.message {
                Some(Message::Progress(layer)) => progress.update(&layer),
                Some(Message::Image(loaded)) => image = Some(loaded),
                None => {}
            },
            Ok(None) => break Ok(()),
            Err(status) => break Err(told(status)),
        }
    };
    progress.finish();
    result?;
    match image {
        Some(image) => Ok(image),
        None => bail!("pulling {reference} ended without an image: see the daemon's log"),
    }
}
