//! `cricket image load`: an archive from a file or standard input, in chunks.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, bail};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::cli::client::{Client, told};
use crate::cli::progress::Progress;
use crate::cli::{Output, Settings, table};
use crate::proto::cricket::LoadImagesRequest;
use crate::proto::cricket::load_images_response::Message;

use super::transfer::{self, Report};

/// Bytes of one message.
const CHUNK_BYTES: usize = 512 << 10;

/// Chunks that wait for the daemon.
const CHUNKS_WAITING: usize = 2;

/// Arguments of `cricket image load`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// The archive, plain or compressed with gzip or zstd; `-` or nothing: standard input
    file: Option<PathBuf>,
}

/// Runs it.
pub async fn run(args: Args, settings: &Settings) -> anyhow::Result<()> {
    let archive = open(args.file.as_deref())?;
    let unread = Arc::new(OnceLock::new());
    let mut client = Client::connect(settings).await?;
    let chunks = ReceiverStream::new(read_in_chunks(archive, Arc::clone(&unread)));
    let mut messages = client.cricket.load_images(chunks).await.map_err(told)?.into_inner();
    let mut progress = Progress::new(!args.quiet);
    let mut images = Vec::new();
    let result = loop {
        match messages.message().await {
            Ok(Some(message)) => match message.message {
                Some(Message::Progress(layer)) => progress.update(&layer),
                Some(Message::Image(image)) => images.push(image),
                None => {}
            },
            Ok(None) => break Ok(()),
            Err(status) => break Err(told(status)),
        }
    };
    let totals = progress.finish();
    let named = args.file.as_deref().filter(|path| *path != Path::new("-"));
    let shown = named.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    // The daemon could only say that the archive is cut short.
    if let Some(error) = unread.get() {
        bail!("cannot read {shown}: {error}");
    }
    result.with_context(|| format!("cannot load {shown}"))?;
    if args.output == Output::Json {
        let reports: Vec<_> = images.iter().map(|image| Report::new(image, totals)).collect();
        return table::json(&reports);
    }
    transfer::sum_up(&totals, args.output, args.quiet);
    images.iter().try_for_each(|image| transfer::say(image, args.quiet))
}

fn open(path: Option<&Path>) -> anyhow::Result<Box<dyn Read + Send>> {
    match path.filter(|path| *path != Path::new("-")) {
        Some(path) => {
            let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
                let path = path.display();
                bail!(
                    "{path} is a directory, not an archive; if it is an OCI layout: tar -C {path} -c . | cricket image load"
                );
            }
            Ok(Box::new(file))
        }
        None if std::io::stdin().is_terminal() => bail!("no archive: name a file, or pipe one to standard input"),
        None => Ok(Box::new(std::io::stdin())),
    }
}

/// A thread of its own reads, because files and pipes block. A read that fails ends the archive early and is left in
/// `unread`.
fn read_in_chunks(
    mut archive: Box<dyn Read + Send>,
    unread: Arc<OnceLock<std::io::Error>>,
) -> mpsc::Receiver<LoadImagesRequest> {
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
    std::thread::spawn(move || {
        loop {
            let mut data = Vec::with_capacity(CHUNK_BYTES);
            match archive.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut data) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    // Set once: the thread ends here.
                    let _ = unread.set(error);
                    return;
                }
            }
            if sender.blocking_send(LoadImagesRequest { data }).is_err() {
                return;
            }
        }
    });
    receiver
}
