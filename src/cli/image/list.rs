//! `cricket image list`: sizes, and which containers use an image.

use crate::cli::client::{Client, told};
use crate::cli::{Output, Settings, table};
use crate::proto::cri::{Container, Image, ListContainersRequest, ListImagesRequest};

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
    let containers = client.runtime.list_containers(ListContainersRequest::default()).await.map_err(told)?.into_inner();
    let listed: Vec<Listed> = images.into_iter().map(|image| Listed::new(image, &containers.containers)).collect();
    if args.output == Output::Json {
        return table::json(&listed);
    }
    let rows: Vec<Vec<String>> = listed.iter().flat_map(rows).collect();
    table::print(args.output, &rows, &["IMAGE", "ID", "SIZE", "USED BY"], Clone::clone)
}

/// An image and the containers made of it.
#[derive(serde::Serialize)]
struct Listed {
    #[serde(flatten)]
    image: Image,
    /// Ids.
    used_by: Vec<String>,
    #[serde(skip)]
    names: Vec<String>,
}

impl Listed {
    fn new(image: Image, containers: &[Container]) -> Self {
        let users = || containers.iter().filter(|container| container.image_id == image.id);
        let name = |container: &Container| container.metadata.clone().unwrap_or_default().name;
        let (used_by, names) = (users().map(|container| container.id.clone()).collect(), users().map(name).collect());
        Self { image, used_by, names }
    }
}

/// One for each name: whoever pulled an image looks for the name he pulled it by.
fn rows(listed: &Listed) -> Vec<Vec<String>> {
    let image = &listed.image;
    let nameless = ["-".to_owned()];
    let names = match (image.repo_tags.as_slice(), image.repo_digests.as_slice()) {
        ([], []) => &nameless[..],
        ([], digests) => digests,
        (tags, _) => tags,
    };
    let used_by = match (listed.names.as_slice(), image.pinned) {
        ([], true) => "- (pinned)".to_owned(),
        ([], false) => "-".to_owned(),
        ([first], _) => first.clone(),
        ([first, more @ ..], _) => format!("{first} (and {} more)", more.len()),
    };
    let row = |name: &String| {
        vec![name.clone(), table::short_id(&image.id).to_owned(), table::bytes(image.size), used_by.clone()]
    };
    names.iter().map(row).collect()
}
