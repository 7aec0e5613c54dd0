//! Standard output and error of commands. A reader that has gone away (`| head`) ends the command without a word.

use std::io::{self, Write};
use std::process::ExitCode;

/// As if SIGPIPE had ended us: what shells and `pipefail` know.
const STATUS: u8 = 128 + libc::SIGPIPE as u8;

/// Nobody reads what we print any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
struct Unread;

/// Writes all of `data` at once; `stderr` or standard output.
pub fn write(stderr: bool, data: &[u8]) -> io::Result<()> {
    let written = match stderr {
        true => io::stderr().write_all(data),
        false => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(data).and_then(|()| stdout.flush())
        }
    };
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, Unread),
        _ => error,
    })
}

/// A line to standard output.
pub fn say(line: &str) -> anyhow::Result<()> {
    Ok(write(false, format!("{line}\n").as_bytes())?)
}

/// An error in one line, to standard error: with its causes, but no cause that the words before it tell already. Where
/// nobody reads that either there is nobody to tell.
pub fn tell(error: &anyhow::Error) {
    let told = error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.contains(&cause) {
        true => told,
        false if told.is_empty() => cause,
        false => format!("{told}: {cause}"),
    });
    let _ = writeln!(io::stderr(), "cricket: {}", told.replace('\n', " "));
}

/// The exit status of a command that failed because nobody read it; none for every other error.
pub fn status_if_unread(error: &anyhow::Error) -> Option<ExitCode> {
    let unread = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<io::Error>();
        io.and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<Unread>())
    };
    error.chain().any(unread).then(|| ExitCode::from(STATUS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_broken_pipe_of_ours_is_told_from_one_to_somebody_else() {
        let ours = io::Error::new(io::ErrorKind::BrokenPipe, Unread);
        let ours = Err::<(), _>(ours).context("log /x").expect_err("an error");
        assert!(status_if_unread(&ours).is_some());
        let other = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(status_if_unread(&other).is_none());
    }
}
