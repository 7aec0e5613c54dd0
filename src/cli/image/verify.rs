//! `cricket image verify`: which images are not what they were, and what to do about it.

use anyhow::bail;
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;

use crate::cli::client::{Client, told};
use crate::cli::{Output, Settings, table};
use crate::proto::cricket::verify_images_response::Message;
use crate::proto::cricket::{Verdict, VerifiedImage, VerifiedLayer, VerifyImagesRequest};

/// Arguments of `cricket image verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids; none: every image
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    images: Vec<String>,
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// For programs.
#[derive(Debug, Default, Serialize)]
struct Verified {
    images: Vec<Image>,
    /// Those that are not whole.
    layers: Vec<Layer>,
}

#[derive(Debug, Serialize)]
struct Image {
    id: String,
    names: Vec<String>,
    verdict: &'static str,
    damaged: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Layer {
    diff_id: String,
    verdict: &'static str,
    detail: String,
}

/// Runs it. A damaged image is a failure.
pub async fn run(args: Args, settings: &Settings) -> anyhow::Result<()> {
    let mut client = Client::connect(settings).await?;
    let request = VerifyImagesRequest { images: args.images };
    let mut messages = client.cricket.verify_images(request).await.map_err(told)?.into_inner();
    let mut verified = Verified::default();
    while let Some(message) = messages.message().await.map_err(told)? {
        match message.message {
            Some(Message::Layer(layer)) if layer.verdict() != Verdict::Whole => verified.layers.push(layer.into()),
            Some(Message::Image(image)) => verified.images.push(image.into()),
            _ => {}
        }
    }
    match args.output {
        Output::Json => table::json(&verified)?,
        Output::Table => {
            table::print(args.output, &verified.images, &["IMAGE", "ID", "VERDICT"], row)?;
            for layer in &verified.layers {
                table::say(&format!("layer {} is {}: {}", layer.diff_id, layer.verdict, layer.detail))?;
            }
        }
    }
    let damaged: Vec<_> = verified.images.iter().filter(|image| image.verdict == word(Verdict::Damaged)).collect();
    if damaged.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = damaged.iter().map(|image| image.names.first().unwrap_or(&image.id).as_str()).collect();
    bail!("damaged, to be pulled again with `cricket image pull`: {}", names.join(", "))
}

fn row(image: &Image) -> Vec<String> {
    let name = image.names.first().cloned().unwrap_or_else(|| "-".to_owned());
    vec![name, table::short_id(&image.id).to_owned(), image.verdict.to_owned()]
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Whole => "whole",
        Verdict::Damaged => "damaged",
        Verdict::Unknown => "unknown",
    }
}

impl From<VerifiedImage> for Image {
    fn from(image: VerifiedImage) -> Self {
        let verdict = word(image.verdict());
        Self { id: image.id, names: image.names, verdict, damaged: image.damaged }
    }
}

impl From<VerifiedLayer> for Layer {
    fn from(layer: VerifiedLayer) -> Self {
        let verdict = word(layer.verdict());
        Self { diff_id: layer.diff_id, verdict, detail: layer.detail }
    }
}
