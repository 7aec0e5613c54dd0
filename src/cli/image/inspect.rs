//! `cricket image inspect`.

use anyhow::{Context, bail};
use clap::builder::NonEmptyStringValueParser;
use serde_json::Value;

use crate::cli::client::{Client, told};
use crate::cli::{Settings, table};
use crate::proto::cri::{ImageSpec, ImageStatusRequest};

/// Arguments of `cricket image inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    image: String,
}

/// Runs it.
pub async fn run(args: Args, settings: &Settings) -> anyhow::Result<()> {
    let mut client = Client::connect(settings).await?;
    let image = Some(ImageSpec { image: args.image.clone(), ..Default::default() });
    let answer = client.images.image_status(ImageStatusRequest { image, verbose: true }).await.map_err(told)?;
    let answer = answer.into_inner();
    let Some(image) = answer.image else {
        bail!("there is no image {:?}: `cricket image list` lists them", args.image);
    };
    let mut value = serde_json::to_value(&image)?;
    for (key, text) in &answer.info {
        let details: Value = serde_json::from_str(text).with_context(|| format!("the daemon's {key} is not JSON"))?;
        value[key] = details;
    }
    table::json(&value)
}
