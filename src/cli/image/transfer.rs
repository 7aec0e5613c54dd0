//! What a pull or a load says at its end: a line and a sum for people, JSON for programs.

use serde::Serialize;

use crate::cli::progress::Totals;
use crate::cli::{Output, table};
use crate::proto::cricket::LoadedImage;

/// An image that is here now.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    #[serde(flatten)]
    image: &'a LoadedImage,
    /// Of the whole call.
    layers: Totals,
}

impl<'a> Report<'a> {
    /// Of one image.
    pub fn new(image: &'a LoadedImage, layers: Totals) -> Self {
        Self { image, layers }
    }
}

/// The line of an image, or only its id.
pub fn say(image: &LoadedImage, quiet: bool) -> anyhow::Result<()> {
    match quiet {
        true => table::say(&image.id),
        false => table::say(&format!("{} {}", table::short_id(&image.id), image.names.join(", "))),
    }
}

/// The sum, to standard error, so that the output stays what it was.
pub fn sum_up(totals: &Totals, output: Output, quiet: bool) {
    if output == Output::Table && !quiet {
        eprintln!("{totals}");
    }
}
