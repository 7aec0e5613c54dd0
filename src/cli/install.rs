//! `cricket install`: writes the systemd unit of dist/ for this user, or for the machine when root calls it, and
//! enables it.
//!
//! The unit starts the binary that was called, where it lies, with the settings that were given. What somebody changes
//! belongs into a drop-in: a unit that is there is written anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};

use super::Settings;
use crate::sys::process::output_within;

/// Starting the daemon is most of it: longer than TimeoutStartSec= of the units.
const PATIENCE: Duration = Duration::from_secs(330);
/// There while systemd runs the machine.
const SYSTEMD_RUNS: &str = "/run/systemd/system";
/// A file for each user whose manager systemd starts at boot.
const LINGERING: &str = "/var/lib/systemd/linger";
/// Of the units in dist/, replaced by the binary's own.
const COMMAND_KEY: &str = "ExecStart=";
const SERVICE: &str = "cricket.service";
const SOCKET: &str = "cricket.socket";

/// Arguments of `cricket install`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// For this user (what an ordinary user gets anyway)
    #[arg(long)]
    user: bool,
    /// Let systemd hold the socket too, so that clients wait while the daemon is restarted
    #[arg(long = "with-socket")]
    with_socket: bool,
    /// Enable it without starting it
    #[arg(long)]
    no_start: bool,
    /// Stop it, disable it and remove the units; pods run on until `cricket stop --pods`
    #[arg(long, conflicts_with_all = ["with_socket", "no_start"])]
    remove: bool,
}

/// Whose units.
struct Place {
    directory: PathBuf,
    service: &'static str,
    socket: &'static str,
    of_user: bool,
}

/// Writes, enables, starts.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    if !Path::new(SYSTEMD_RUNS).is_dir() {
        bail!("this machine is not run by systemd: start `cricket serve` by what runs it");
    }
    let place = Place::of(args.user)?;
    if args.remove {
        return place.remove();
    }
    place.write(SERVICE, &service(place.service, &command(settings)?)?)?;
    let mut enabled = vec![SERVICE];
    if args.with_socket {
        if settings.socket.is_some() || settings.state.is_some() {
            bail!("with a socket of systemd's the default one is used: leave out --socket and --state");
        }
        place.write(SOCKET, place.socket)?;
        enabled.push(SOCKET);
    }
    place.systemctl(&["daemon-reload"])?;
    place.systemctl(&[&["enable", "--quiet"], enabled.as_slice()].concat())?;
    if !args.no_start {
        // A socket is not begun while its service runs, and the service would bind it: one after the other.
        place.systemctl(&["stop", SERVICE])?;
        enabled.reverse();
        place.systemctl(&[&["restart"], enabled.as_slice()].concat())?;
        println!("{SERVICE} runs; its log: {}", place.log_command());
    }
    if place.of_user {
        println!("{}", linger());
    }
    Ok(ExitCode::SUCCESS)
}

impl Place {
    fn of(user: bool) -> anyhow::Result<Self> {
        match (rustix::process::geteuid().is_root(), user) {
            (true, true) => bail!("--user is for an ordinary user: call it as that user"),
            (true, false) => Ok(Self {
                directory: "/etc/systemd/system".into(),
                service: include_str!("../../dist/system/cricket.service"),
                socket: include_str!("../../dist/system/cricket.socket"),
                of_user: false,
            }),
            (false, _) => {
                let configuration = match std::env::var_os("XDG_CONFIG_HOME").filter(|path| !path.is_empty()) {
                    Some(path) => PathBuf::from(path),
                    None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".config"),
                };
                Ok(Self {
                    directory: configuration.join("systemd/user"),
                    service: include_str!("../../dist/user/cricket.service"),
                    socket: include_str!("../../dist/user/cricket.socket"),
                    of_user: true,
                })
            }
        }
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.directory.join(name);
        fs::create_dir_all(&self.directory).with_context(|| format!("making {}", self.directory.display()))?;
        let new = self.directory.join(format!(".{name}.new"));
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("writing {}", path.display()))?;
        println!("wrote {}", path.display());
        Ok(())
    }

    fn remove(&self) -> anyhow::Result<ExitCode> {
        let there: Vec<_> = [SOCKET, SERVICE].into_iter().filter(|name| self.directory.join(name).exists()).collect();
        if there.is_empty() {
            println!("no unit of cricket is in {}", self.directory.display());
            return Ok(ExitCode::SUCCESS);
        }
        self.systemctl(&[&["disable", "--now", "--quiet"], there.as_slice()].concat())?;
        for name in there {
            let path = self.directory.join(name);
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            println!("removed {}", path.display());
        }
        self.systemctl(&["daemon-reload"])?;
        Ok(ExitCode::SUCCESS)
    }

    fn systemctl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("systemctl");
        command.args(self.of_user.then_some("--user")).args(arguments);
        let said = format!("systemctl {}{}", if self.of_user { "--user " } else { "" }, arguments.join(" "));
        let output = output_within(command, PATIENCE).with_context(|| format!("running `{said}`"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!("`{said}`: {} ({}); more is in its log: {}", why.trim(), output.status, self.log_command());
        }
        Ok(())
    }

    fn log_command(&self) -> &'static str {
        if self.of_user { "journalctl --user -u cricket" } else { "journalctl -u cricket" }
    }
}

/// The unit of dist/ with the binary's own command.
fn service(template: &str, command: &str) -> anyhow::Result<String> {
    let line = template.lines().find(|line| line.starts_with(COMMAND_KEY));
    let line = line.context("the unit has no command; this is a defect")?;
    Ok(template.replace(line, &format!("{COMMAND_KEY}{command}")))
}

fn command(settings: &Settings) -> anyhow::Result<String> {
    let binary = std::env::current_exe().context("finding this binary")?;
    if !binary.is_file() {
        bail!("{} is not there any more: call the binary where it is now", binary.display());
    }
    let mut words = vec![quoted(&binary)?, "serve".to_owned()];
    let paths = [&settings.config, &settings.root, &settings.state, &settings.socket];
    for (flag, path) in ["--config", "--root", "--state", "--socket"].into_iter().zip(paths) {
        if let Some(path) = path {
            words.extend([flag.to_owned(), quoted(&std::path::absolute(path)?)?]);
        }
    }
    Ok(words.join(" "))
}

/// A word of a command line as systemd reads it (systemd.service(5), COMMAND LINES).
fn quoted(path: &Path) -> anyhow::Result<String> {
    let Some(text) = path.to_str().filter(|text| !text.contains(char::is_control)) else {
        bail!("a systemd unit cannot name {}", path.display());
    };
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Ok(if escaped.contains([' ', '\'', '"', '\\', ';']) { format!("\"{escaped}\"") } else { escaped })
}

/// What becomes of a user's unit when he logs out.
fn linger() -> String {
    let name = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
    let name = name.unwrap_or_else(|| rustix::process::geteuid().as_raw().to_string());
    match Path::new(LINGERING).join(&name).exists() {
        true => format!("linger is on for {name}: cricket starts at boot, and it and its pods stay over a logout"),
        false => format!(
            "linger is off for {name}: cricket and its pods end with your last logout and do not start at boot; \
             to keep them: loginctl enable-linger {name}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_of_dist_starts_the_binary_that_was_called() {
        for template in
            [include_str!("../../dist/user/cricket.service"), include_str!("../../dist/system/cricket.service")]
        {
            let unit = service(template, "/opt/cricket serve").expect("a unit");
            assert_eq!(unit.lines().filter(|line| *line == "ExecStart=/opt/cricket serve").count(), 1);
            for line in
                ["Type=notify", "Delegate=yes", "DelegateSubgroup=daemon", "KillMode=process", "OOMPolicy=continue"]
            {
                assert!(unit.lines().any(|found| found == line), "{line}");
            }
        }
        assert!(service("[Service]\n", "x").is_err());
    }

    #[test]
    fn a_path_is_written_as_systemd_reads_it() {
        for (path, word) in [
            ("/usr/bin/cricket", "/usr/bin/cricket"),
            ("/a b/c", "\"/a b/c\""),
            ("/50%/$x", "/50%%/$$x"),
            ("/a\"b", "\"/a\\\"b\""),
        ] {
            assert_eq!(quoted(Path::new(path)).expect("a word"), word);
        }
        assert!(quoted(Path::new("/a\nb")).is_err());
    }
}
