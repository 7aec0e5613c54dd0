//! `cricket image remove`.

use anyhow::bail;

use crate::cli::client::{Client, told};
use crate::cli::{Settings, table};
use crate::proto::cri::{ImageSpec, ImageStatusRequest, RemoveImageRequest};

/// Arguments of `cricket image remove`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids
    #[arg(required = true)]
    images: Vec<String>,
}

/// Runs it. An image that is not there is an error for a person, unlike for a kubelet.
pub async fn run(args: Args, settings: &Settings) -> anyhow::Result<()> {
    let mut client = Client::connect(settings).await?;
    for name in args.images {
        let image = Some(ImageSpec { image: name.clone(), ..Default::default() });
        let request = ImageStatusRequest { image: image.clone(), verbose: false };
        let Some(found) = client.images.image_status(request).await.map_err(told)?.into_inner().image else {
            bail!("there is no image {name:?}: `cricket image list` lists them");
        };
        client.images.remove_image(RemoveImageRequest { image }).await.map_err(told)?;
        table::say(&format!("removed {} {}", table::short_id(&found.id), found.repo_tags.join(", ")))?;
    }
    Ok(())
}
