//! `cricket image save`: an archive to a file or to standard output, compressed here if wanted.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::builder::NonEmptyStringValueParser;

use crate::cli::Settings;
use crate::cli::client::{Client, told};
use crate::proto::cricket::{ArchiveFormat, SaveImagesRequest};

/// Work of the compressors: their authors' own defaults.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// Arguments of `cricket image save`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids; each is saved with all its names
    #[arg(required = true, value_parser = NonEmptyStringValueParser::new())]
    images: Vec<String>,
    /// Where to; `-`: standard output
    #[arg(short = 'f', long = "file", default_value = "-")]
    file: PathBuf,
    /// What for
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// How the whole archive is compressed
    #[arg(long, value_enum, default_value_t)]
    compress: Compress,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Format {
    /// An OCI layout
    #[default]
    Oci,
    /// As `docker save` writes it
    Docker,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Compress {
    /// Not at all
    #[default]
    None,
    Gzip,
    Zstd,
}

/// Runs it. A file gets its name when it is whole.
pub async fn run(args: Args, settings: &Settings) -> anyhow::Result<()> {
    let to_output = args.file == Path::new("-");
    if to_output && io::stdout().is_terminal() {
        bail!("the archive is not for a terminal: name a file with -f, or pipe it on");
    }
    let mut client = Client::connect(settings).await?;
    if to_output {
        return receive(&mut client, &args, Box::new(io::stdout())).await;
    }
    let mut name = args.file.clone().into_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let unfinished = PathBuf::from(name);
    let failed = |what: &str| format!("cannot {what} {}", args.file.display());
    let file = File::create_new(&unfinished).with_context(|| failed("make"))?;
    let saved = receive(&mut client, &args, Box::new(file)).await;
    let saved = saved.and_then(|()| std::fs::rename(&unfinished, &args.file).with_context(|| failed("name")));
    if saved.is_err() {
        // What is told is why it failed.
        let _ = std::fs::remove_file(&unfinished);
    }
    saved
}

async fn receive(client: &mut Client, args: &Args, out: Box<dyn Write>) -> anyhow::Result<()> {
    let format = match args.format {
        Format::Oci => ArchiveFormat::Oci,
        Format::Docker => ArchiveFormat::Docker,
    };
    let request = SaveImagesRequest { images: args.images.clone(), format: format.into() };
    let mut messages = client.cricket.save_images(request).await.map_err(told)?.into_inner();
    let mut packer = Packer::new(BufWriter::new(out), args.compress).context("cannot compress")?;
    while let Some(message) = messages.message().await.map_err(told)? {
        packer.write_all(&message.data).context("cannot write the archive")?;
    }
    packer.finish().context("cannot write the archive")
}

type Out = BufWriter<Box<dyn Write>>;

enum Packer {
    Plain(Out),
    Gzip(flate2::write::GzEncoder<Out>),
    Zstd(zstd::stream::write::Encoder<'static, Out>),
}

impl Packer {
    fn new(out: Out, compress: Compress) -> io::Result<Self> {
        Ok(match compress {
            Compress::None => Self::Plain(out),
            Compress::Gzip => Self::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL))),
            Compress::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?),
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Gzip(out) => out.write_all(bytes),
            Self::Zstd(out) => out.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Plain(mut out) => out.flush(),
            Self::Gzip(out) => out.finish()?.flush(),
            Self::Zstd(out) => out.finish()?.flush(),
        }
    }
}
