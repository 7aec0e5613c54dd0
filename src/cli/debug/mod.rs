//! `cricket debug dump`: one archive for a bug report. What it holds of people's own (environments, arguments,
//! annotations, whatever is called a secret) is taken out by `redact`; nothing of an image or of a container's files is
//! in it.
//!
//! ```text
//! version.txt  check.json  config.toml  node.json  status.json  containers.json  files.txt  mounts.txt  journal.txt
//! root/pods/ID/pod.json, containers/CID/*.json     state/pods/ID/*.json, supervisor.log, containers/CID/*.json
//! errors.txt   what could not be had
//! ```

mod redact;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use super::client::{Client, block_on, told};
use super::{Settings, check, table};
use crate::config::Config;
use crate::proto::cri;
use crate::rootless::NodeKind;
use crate::sys::process::output_within;

/// Of one file.
const FILE_LIMIT_BYTES: u64 = 1 << 20;
/// Names in the list of files.
const NAMES_LIMIT: usize = 20_000;
/// Levels below root and state; deeper is images' own.
const DEPTH_LIMIT: usize = 6;
/// Directories whose names are an image's or a container's.
const OF_IMAGES: [&str; 4] = ["tree", "upper", "work", "rootfs"];
/// A daemon or a journal that does not answer is left out.
const PATIENCE: Duration = Duration::from_secs(10);
/// Lines of the journal.
const JOURNAL_LINES: &str = "2000";
const UNIT: &str = "cricket.service";

/// Arguments of `cricket debug`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Write an archive for a bug report: state, versions, check, the last logs; without secrets
    Dump {
        /// The archive; it must not be there yet [default: cricket-debug-TIME.tar.gz]
        file: Option<PathBuf>,
    },
}

/// Runs it.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let Action::Dump { file } = args.command;
    let config = settings.load()?;
    let file = file.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        format!("cricket-debug-{}.tar.gz", now.as_secs()).into()
    });
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
    let made = made.with_context(|| format!("making {}", file.display()))?;
    let dump = Dump { tar: tar::Builder::new(GzEncoder::new(made, Compression::default())), errors: String::new() };
    dump.write(&config, settings).with_context(|| format!("writing {}", file.display()))?;
    table::say(&format!("{}: look through it before you give it away", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

struct Dump {
    tar: tar::Builder<GzEncoder<File>>,
    errors: String,
}

impl Dump {
    fn write(mut self, config: &Config, settings: &Settings) -> anyhow::Result<()> {
        self.add("version.txt", version().as_bytes())?;
        match NodeKind::here() {
            Ok(kind) => self.add_json("check.json", &check::findings(config, kind))?,
            Err(error) => self.miss("check.json", &error),
        }
        let file = settings.config.clone().filter(|path| path.exists());
        if let Some(file) = file {
            let text = read(&file).map(|bytes| redact::settings(&String::from_utf8_lossy(&bytes)));
            self.add_or_miss("config.toml", text)?;
        }
        self.add_or_miss("node.json", read_json(&config.state.join("node.json")))?;
        self.ask_daemon(settings)?;
        self.add("files.txt", list(&[&config.root, &config.state]).as_bytes())?;
        let mounts = read(Path::new("/proc/self/mountinfo")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        self.add_or_miss("mounts.txt", mounts)?;
        self.add_or_miss("journal.txt", journal())?;
        for (name, root) in [("root", &config.root), ("state", &config.state)] {
            self.add_records(&format!("{name}/pods"), &root.join("pods"), 0)?;
        }
        let errors = std::mem::take(&mut self.errors);
        self.add("errors.txt", errors.as_bytes())?;
        self.tar.into_inner()?.finish()?.sync_all()?;
        Ok(())
    }

    fn ask_daemon(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let asked = block_on(async {
            let answers = async {
                let mut client = Client::connect(settings).await?;
                let status = cri::StatusRequest { verbose: true };
                let status = client.runtime.status(status).await.map_err(told)?.into_inner();
                let all = cri::ListContainersRequest::default();
                let containers = client.runtime.list_containers(all).await.map_err(told)?.into_inner();
                anyhow::Ok((status, containers.containers))
            };
            tokio::time::timeout(PATIENCE, answers).await.context("the daemon did not answer in time")?
        });
        match asked {
            Ok((status, containers)) => {
                self.add_json("status.json", &status)?;
                self.add_json("containers.json", &containers)
            }
            Err(error) => {
                self.miss("status.json", &format!("{error:#}"));
                Ok(())
            }
        }
    }

    /// Records and supervisors' own logs.
    fn add_records(&mut self, name: &str, directory: &Path, depth: usize) -> anyhow::Result<()> {
        for (file, path) in entries(directory) {
            let name = format!("{name}/{file}");
            if path.is_dir() && !path.is_symlink() && depth < DEPTH_LIMIT && !OF_IMAGES.contains(&file.as_str()) {
                self.add_records(&name, &path, depth + 1)?;
            } else if file.ends_with(".json") || file.ends_with(".unreadable") {
                self.add_or_miss(&name, read_json(&path))?;
            } else if file == "supervisor.log" {
                let text = read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                self.add_or_miss(&name, text)?;
            }
        }
        Ok(())
    }

    fn add_json(&mut self, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
        let text = redact::json(serde_json::to_value(value)?);
        self.add(name, format!("{text:#}\n").as_bytes())
    }

    fn add_or_miss(&mut self, name: &str, text: std::io::Result<String>) -> anyhow::Result<()> {
        match text {
            Ok(text) => self.add(name, text.as_bytes())?,
            Err(error) => self.miss(name, &error),
        }
        Ok(())
    }

    fn miss(&mut self, name: &str, why: &impl std::fmt::Display) {
        self.errors += &format!("{name}: {why}\n");
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(bytes.len() as u64);
        Ok(self.tar.append_data(&mut header, format!("cricket-debug/{name}"), bytes)?)
    }
}

fn version() -> String {
    let system = rustix::system::uname();
    let text = |field: &std::ffi::CStr| field.to_string_lossy().into_owned();
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    format!(
        "cricket {}\n{} {} {}\n\n{release}",
        env!("CARGO_PKG_VERSION"),
        text(system.sysname()),
        text(system.release()),
        text(system.machine()),
    )
}

/// The beginning of a file, whatever it is.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A record that is no JSON is told by its length only: what it holds cannot be redacted.
fn read_json(path: &Path) -> std::io::Result<String> {
    let bytes = read(path)?;
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(format!("{:#}\n", redact::json(value))),
        Err(error) => Err(std::io::Error::other(format!("{} bytes that are no record: {error}", bytes.len()))),
    }
}

fn journal() -> std::io::Result<String> {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--lines", JOURNAL_LINES, "--unit", UNIT]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user-unit", UNIT]);
    }
    let output = output_within(command, PATIENCE)?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

fn entries(directory: &Path) -> Vec<(String, PathBuf)> {
    let found = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        found.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    found.sort();
    found
}

/// Kind, size and name of what lies below.
fn list(roots: &[&Path]) -> String {
    let mut text = String::new();
    let mut names = 0;
    let mut open: Vec<(PathBuf, usize)> = roots.iter().rev().map(|root| (root.to_path_buf(), 0)).collect();
    while let Some((directory, depth)) = open.pop() {
        for (name, path) in entries(&directory) {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            names += 1;
            if names > NAMES_LIMIT {
                return text + "... and more\n";
            }
            let kind = if metadata.is_dir() { 'd' } else { '-' };
            text += &format!("{kind} {:>10} {}\n", metadata.len(), path.display());
            if metadata.is_dir() && depth < DEPTH_LIMIT && !OF_IMAGES.contains(&name.as_str()) {
                open.push((path, depth + 1));
            }
        }
    }
    text
}
