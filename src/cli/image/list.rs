//! `cricket image list`.

use crate::cli::client::{Client, told};
use crate::cli::{Output, Settings, table};
use crate::proto::cri::{Image, ListImagesRequest};

/// Arguments of `cricket image list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs it.
pub async fn run(args: Args, settings: &Settings) -> anyhow::Result<()> {
    let mut client = Client::connect(settings).await?;
    let mut images = client.images.list_images(ListImagesRequest::default()).await.map_err(told)?.into_inner().images;
    images.sort_by(|a, b| a.repo_tags.cmp(&b.repo_tags));
    if args.quiet {
        return images.iter().try_for_each(|image| table::say(&image.id));
    }
    table::print(args.output, &images, &["IMAGE", "ID", "SIZE"], row)
}

fn row(image: &Image) -> Vec<String> {
    let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
    let name = names.first().map_or_else(
        || "-".to_owned(),
        |first| match names.len() {
            1 => first.clone(),
            more => format!("{first} (and {} more)", more - 1),
        },
    );
    vec![name, table::short_id(&image.id).to_owned(), table::bytes(image.size)]
}
