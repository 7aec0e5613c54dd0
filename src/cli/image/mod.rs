//! `cricket image`: images, a file per verb.

mod inspect;
mod list;
mod load;
mod prune;
pub mod pull;
mod remove;
mod save;
mod transfer;
mod verify;

use std::process::ExitCode;

use super::Settings;
use super::client::block_on;

/// Arguments of `cricket image`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List images
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Pull an image from its registry
    Pull(pull::Args),
    /// Load images from an OCI or docker archive
    Load(load::Args),
    /// Write images to an OCI or docker archive
    Save(save::Args),
    /// Compare the layers of images with their digests
    Verify(verify::Args),
    /// Remove images that no container uses
    Prune(prune::Args),
    /// Remove images with all their names
    #[command(visible_alias = "rm")]
    Remove(remove::Args),
    /// Print what is known of an image, as JSON
    Inspect(inspect::Args),
}

/// Runs it.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    block_on(async {
        match args.verb {
            Verb::List(args) => list::run(args, settings).await,
            Verb::Pull(args) => pull::run(args, settings).await,
            Verb::Load(args) => load::run(args, settings).await,
            Verb::Save(args) => save::run(args, settings).await,
            Verb::Verify(args) => verify::run(args, settings).await,
            Verb::Prune(args) => prune::run(args, settings).await,
            Verb::Remove(args) => remove::run(args, settings).await,
            Verb::Inspect(args) => inspect::run(args, settings).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
