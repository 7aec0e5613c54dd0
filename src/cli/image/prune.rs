//! `cricket image prune`.

use crate::cli::client::{Client, told};
use crate::cli::{Output, Settings, table};
use crate::proto::cricket::PruneImagesRequest;

use super::transfer;

/// Arguments of `cricket image prune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also images that have a name
    #[arg(short, long)]
    all: bool,
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs it.
pub async fn run(args: Args, settings: &Settings) -> anyhow::Result<()> {
    let mut client = Client::connect(settings).await?;
    let request = PruneImagesRequest { all: args.all };
    let answer = client.cricket.prune_images(request).await.map_err(told)?.into_inner();
    if args.output == Output::Json {
        return table::json(&answer);
    }
    answer.removed.iter().try_for_each(|image| transfer::say(image, false))?;
    table::say(&format!("{} images removed, {} free", answer.removed.len(), table::bytes(answer.freed_bytes)))
}
