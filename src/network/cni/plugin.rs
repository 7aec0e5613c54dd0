//! One run of one plugin. It is a stranger's program with the node's rights: what it prints is bounded, how long it
//! takes is bounded, and its process group ends with it. Whoever leaves the group lives on, as a plugin that starts a
//! server for the pod means it (dnsname's dnsmasq), and is not waited for: of ours he holds the far ends of pipes that
//! are closed here.
//!
//! Runs in a thread that may block; the plugin is killed when that thread ends, with the daemon or without.

use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::Value;

use crate::sys::spawn;

use super::error::{CniError, quote};

/// Most that a plugin may print as its result; one for a pod has a few hundred bytes.
const OUTPUT_LIMIT_BYTES: usize = 1 << 20;
/// Most that it may log before it is killed, and what of it is kept.
const LOG_LIMIT_BYTES: usize = 16 << 20;
const LOG_KEPT_BYTES: usize = 4 << 10;
/// Read at once.
const PIECE_BYTES: usize = 16 << 10;
/// Where a plugin finds the pod's network namespace, open, when no process lives in it any more.
pub const NAMESPACE_NUMBER: i32 = 9;
/// Variables that are the daemon's own affair.
const NOT_INHERITED: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// What is run.
pub struct Call<'a> {
    /// The plugin's type.
    pub plugin: &'a str,
    /// ADD, DEL, ...
    pub command: &'static str,
    /// The file.
    pub program: &'a Path,
    /// CNI_* without CNI_COMMAND, and what else is to be set.
    pub environment: Vec<(&'static str, String)>,
    /// Its configuration.
    pub input: Vec<u8>,
    /// Given to it at [`NAMESPACE_NUMBER`].
    pub passed: Option<BorrowedFd<'a>>,
    /// A pidfd: when that process ends, the plugin is killed.
    pub holder: Option<BorrowedFd<'a>>,
    /// Joined by it.
    pub namespaces: &'a [OwnedFd],
    /// How long it may take.
    pub patience: Duration,
}

impl Call<'_> {
    fn misbehaved(&self, problem: impl Into<String>) -> CniError {
        CniError::Misbehaved { plugin: self.plugin.to_owned(), command: self.command, problem: problem.into() }
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> CniError {
        let message = format!("{action} the plugin {}", self.program.display());
        CniError::io(message)
    }

    /// Runs it to its end and answers what it printed.
    pub fn run(mut self) -> Result<Vec<u8>, CniError> {
        let mut child = self.spawn().map_err(|source| {
            let (plugin, program) = (self.plugin.to_owned(), self.program.to_owned());
            CniError::NotStarted { plugin, program, source }
        })?;
        let mut pipes = Pipes::of(&mut child, std::mem::take(&mut self.input));
        let outcome = self.attend(&child, &mut pipes);
        // Before the plugin is reaped: until then the group's number cannot be another's.
        if let Some(group) = Pid::from_raw(child.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let status = child.wait().map_err(self.failed("wait for"))?;
        match outcome? {
            End::Exited => {}
            End::PodEnded => return Err(CniError::PodEnded { plugin: self.plugin.to_owned() }),
            End::Deadline => {
                let (plugin, command, patience) = (self.plugin.to_owned(), self.command, self.patience);
                return Err(CniError::Deadline { plugin, command, patience });
            }
        }
        pipes.drain().map_err(|problem| self.misbehaved(problem))?;
        self.judge(status, pipes)
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut command = Command::new(self.program);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        command
            .env("CNI_COMMAND", self.command)
            .envs(self.environment.iter().map(|(name, value)| (*name, value.as_str())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        spawn::join_and_die_with_thread(
            &mut command,
            self.namespaces,
            self.passed.map(|namespace| (namespace, NAMESPACE_NUMBER)),
        )?;
        command.spawn()
    }

    fn attend(&self, child: &Child, pipes: &mut Pipes) -> Result<End, CniError> {
        let deadline = Instant::now() + self.patience;
        let pid = Pid::from_raw(child.id() as i32).ok_or_else(|| self.misbehaved("it has no process id"))?;
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| self.failed("watch")(e.into()))?;
        pipes.set_nonblocking().map_err(self.failed("speak to"))?;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(End::Deadline);
            }
            match wait(&process, self.holder, pipes, rest).map_err(self.failed("wait for"))? {
                Woken { exited: true, .. } => return Ok(End::Exited),
                Woken { pod_ended: true, .. } => return Ok(End::PodEnded),
                Woken { .. } => pipes.advance().map_err(|problem| self.misbehaved(problem))?,
            }
        }
    }

    /// An error document is an error whatever the exit status says.
    fn judge(&self, status: ExitStatus, pipes: Pipes) -> Result<Vec<u8>, CniError> {
        let log = quote(&String::from_utf8_lossy(&pipes.log));
        if let Some(refused) = self.refusal(&pipes.output, status.success()) {
            return Err(refused);
        }
        if status.success() {
            if !log.is_empty() {
                tracing::debug!(plugin = self.plugin, command = self.command, "{log}");
            }
            return Ok(pipes.output);
        }
        let output = quote(&String::from_utf8_lossy(&pipes.output));
        let said = [log, output].into_iter().find(|text| !text.is_empty());
        let said = said.map_or_else(|| "said nothing".to_owned(), |text| format!("said: {text}"));
        Err(self.misbehaved(format!("it ended with {status} and {said}")))
    }

    fn refusal(&self, output: &[u8], success: bool) -> Option<CniError> {
        let document: Value = serde_json::from_slice(output).ok()?;
        let code = document.get("code").and_then(Value::as_u64);
        let text = |key: &str| document.get(key).and_then(Value::as_str).map(quote).unwrap_or_default();
        let (message, details) = (text("msg"), text("details"));
        // A document without a code that says something is meant as an error only by who also fails.
        let is_error = code.is_some_and(|code| code != 0) || (!success && (code.is_some() || !message.is_empty()));
        is_error.then(|| CniError::Refused {
            plugin: self.plugin.to_owned(),
            command: self.command,
            code: code.unwrap_or_default(),
            message: if message.is_empty() { "it gave no reason".to_owned() } else { message },
            details: if details.is_empty() { details } else { format!(": {details}") },
        })
    }
}

enum End {
    Exited,
    PodEnded,
    Deadline,
}

#[derive(Default)]
struct Woken {
    exited: bool,
    pod_ended: bool,
}

/// Until something happens or `patience` is over.
fn wait(process: &OwnedFd, holder: Option<BorrowedFd<'_>>, pipes: &Pipes, patience: Duration) -> io::Result<Woken> {
    let mut polled = vec![PollFd::new(process, PollFlags::IN)];
    polled.extend(holder.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
    let ours = polled.len();
    polled.extend(pipes.stdin.iter().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
    polled.extend(pipes.stdout.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
    polled.extend(pipes.stderr.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
    let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Woken::default()),
        Err(error) => return Err(error.into()),
    }
    let ready = |polled: &PollFd<'_>| !polled.revents().is_empty();
    Ok(Woken { exited: ready(&polled[0]), pod_ended: polled[1..ours].iter().any(ready) })
}

/// Our ends of a plugin's pipes.
struct Pipes {
    stdin: Option<ChildStdin>,
    input: Vec<u8>,
    written: usize,
    stdout: Option<OwnedFd>,
    output: Vec<u8>,
    stderr: Option<OwnedFd>,
    log: Vec<u8>,
    logged: usize,
}

impl Pipes {
    fn of(child: &mut Child, input: Vec<u8>) -> Self {
        Self {
            stdin: child.stdin.take(),
            input,
            written: 0,
            stdout: child.stdout.take().map(OwnedFd::from),
            output: Vec::new(),
            stderr: child.stderr.take().map(OwnedFd::from),
            log: Vec::new(),
            logged: 0,
        }
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        let pipes = [
            self.stdin.as_ref().map(AsFd::as_fd),
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
        ];
        for pipe in pipes.into_iter().flatten() {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(())
    }

    /// A piece of each that is ready.
    fn advance(&mut self) -> Result<(), String> {
        self.write();
        self.read_output()?;
        self.read_log()?;
        Ok(())
    }

    /// What was in the pipes when the plugin ended. Whoever still holds them is not waited for.
    fn drain(&mut self) -> Result<(), String> {
        while self.read_output()? {}
        while self.read_log()? {}
        Ok(())
    }

    /// A plugin that does not read its configuration is none of our business.
    fn write(&mut self) {
        let Some(pipe) = &mut self.stdin else { return };
        let done = match pipe.write(&self.input[self.written..]) {
            Ok(count) => {
                self.written += count;
                self.written == self.input.len()
            }
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        if done {
            self.stdin = None;
        }
    }

    fn read_output(&mut self) -> Result<bool, String> {
        let mut piece = [0; PIECE_BYTES];
        let count = read(&mut self.stdout, &mut piece);
        self.output.extend_from_slice(&piece[..count]);
        match self.output.len() > OUTPUT_LIMIT_BYTES {
            true => Err(format!("it printed more than {OUTPUT_LIMIT_BYTES} bytes and was killed")),
            false => Ok(count > 0),
        }
    }

    fn read_log(&mut self) -> Result<bool, String> {
        let mut piece = [0; PIECE_BYTES];
        let count = read(&mut self.stderr, &mut piece);
        let kept = count.min(LOG_KEPT_BYTES.saturating_sub(self.log.len()));
        self.log.extend_from_slice(&piece[..kept]);
        self.logged += count;
        match self.logged > LOG_LIMIT_BYTES {
            true => Err(format!("it logged more than {LOG_LIMIT_BYTES} bytes and was killed")),
            false => Ok(count > 0),
        }
    }
}

/// What is there now; the pipe is closed at its end.
fn read(pipe: &mut Option<OwnedFd>, piece: &mut [u8]) -> usize {
    let Some(fd) = pipe else { return 0 };
    match rustix::io::read(fd, piece) {
        Ok(count) if count > 0 => count,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
        Ok(_) | Err(_) => {
            *pipe = None;
            0
        }
    }
}

#[cfg(test)]
#[path = "plugin_tests.rs"]
mod tests;
