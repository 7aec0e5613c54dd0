//! `cricket image remove`.

use anyhow::bail;
use clap::builder::NonEmptyStringValueParser;

use crate::cli::client::{Client, told};
use crate::cli::{Output, Settings, table};
use crate::proto::cri::{ImageSpec, ImageStatusRequest, RemoveImageRequest};

/// Arguments of `cricket image remove`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids; an image goes with all of its names, whichever of them is said here
    #[arg(required = true, value_parser = NonEmptyStringValueParser::new())]
    images: Vec<String>,
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs it. An image that is not there is an error for a person, unlike for a kubelet.
pub async fn run(args: Args, settings: &Settings) -> anyhow::Result<()> {
    let mut client = Client::connect(settings).await?;
    let mut removed = Vec::new();
    for name in args.images {
        let image = Some(ImageSpec { image: name.clone(), ..Default::default() });
        let request = ImageStatusRequest { image: image.clone(), verbose: false };
        let Some(found) = client.images.image_status(request).await.map_err(told)?.into_inner().image else {
            bail!("there is no image {name:?}: `cricket image list` lists them");
        };
        client.images.remove_image(RemoveImageRequest { image }).await.map_err(told)?;
        match args.output {
            Output::Table => {
                table::say(&format!("removed {} {}", table::short_id(&found.id), found.repo_tags.join(", ")))?;
            }
            Output::Json => removed.push(found),
        }
    }
    if args.output == Output::Json { table::json(&removed) } else { Ok(()) }
}
