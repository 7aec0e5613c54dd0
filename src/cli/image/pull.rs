//! `cricket image pull`.

use anyhow::{Context, bail};
use clap::builder::NonEmptyStringValueParser;

use crate::cli::client::{Client, told};
use crate::cli::progress::{Progress, Totals};
use crate::cli::{Output, Settings, table};
use crate::image::Credentials;
use crate::image::registry::saved::SavedCredentials;
use crate::proto::cricket::pull_image_response::Message;
use crate::proto::cricket::{LoadedImage, PullImageRequest};

use super::transfer::{self, Report};

/// Where credentials are taken from so that they are not seen in a list of processes.
const CREDENTIALS_VARIABLE: &str = "CRICKET_CREDS";

/// Arguments of `cricket image pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print only the image's id
    #[arg(short, long)]
    quiet: bool,
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Credentials for the registry; without them those of a login (docker, podman, skopeo) are used
    #[arg(long, value_name = "USER:PASSWORD", env = CREDENTIALS_VARIABLE, hide_env_values = true)]
    creds: Option<String>,
    /// The image: registry/repository:tag or registry/repository@digest
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    image: String,
}

/// Runs it.
pub async fn run(args: Args, settings: &Settings) -> anyhow::Result<()> {
    let mut client = Client::connect(settings).await?;
    let credentials = args.creds.as_deref().map(split).transpose()?;
    let (image, totals) = pull(&mut client, &args.image, credentials, !args.quiet).await?;
    if args.output == Output::Json {
        return table::json(&Report::new(&image, totals));
    }
    transfer::sum_up(&totals, args.output, args.quiet);
    transfer::say(&image, args.quiet)
}

fn split(credentials: &str) -> anyhow::Result<(&str, &str)> {
    credentials.split_once(':').context("--creds: USER:PASSWORD is expected")
}

/// What a login has left for the image's registry.
async fn saved(reference: &str) -> anyhow::Result<PullImageRequest> {
    let mut request = PullImageRequest { reference: reference.to_owned(), ..PullImageRequest::default() };
    // What is no name is the daemon's to refuse.
    let Ok(name) = reference.parse() else { return Ok(request) };
    match SavedCredentials::from_environment().find(&name).await? {
        Some(Credentials::Basic { username, password }) => (request.username, request.password) = (username, password),
        Some(Credentials::IdentityToken(token)) => request.identity_token = token,
        Some(Credentials::RegistryToken(token)) => request.registry_token = token,
        None => {}
    }
    Ok(request)
}

/// Pulls with bars on a terminal, if wanted.
pub async fn pull(
    client: &mut Client,
    reference: &str,
    credentials: Option<(&str, &str)>,
    bars: bool,
) -> anyhow::Result<(LoadedImage, Totals)> {
    let request = match credentials {
        Some((username, password)) => PullImageRequest {
            reference: reference.to_owned(),
            username: username.to_owned(),
            password: password.to_owned(),
            ..PullImageRequest::default()
        },
        None => saved(reference).await?,
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
    let totals = progress.finish();
    result?;
    match image {
        Some(image) => Ok((image, totals)),
        None => bail!("pulling {reference} ended without an image: see the daemon's log"),
    }
}
