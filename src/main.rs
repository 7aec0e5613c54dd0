//! The binary: parse the command line, dispatch. No thread exists before a command starts one.
//!
//! What runs where a container could reach it (`cricket supervise`) is executed from a sealed mount of this binary
//! (`sys::sealed`), made by the daemon before its first thread; the command refuses to run from anywhere else.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use cricket::cli::{Cli, output};

/// What shells use for a command line that is not understood.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match Cli::try_parse().map(Cli::run) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => output::status_if_unread(&error).unwrap_or_else(|| {
            output::tell(&error);
            ExitCode::FAILURE
        }),
        Err(error) => answer(&error),
    }
}

/// Help and version as they are; a mistake in one line.
fn answer(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(USAGE)
        }
        _ => {
            output::tell(&anyhow::Error::msg(mistake(&error.render().to_string())));
            ExitCode::from(USAGE)
        }
    }
}

/// What is wrong and what to do, of the paragraphs that the parser has for it.
fn mistake(paragraphs: &str) -> String {
    let told = paragraphs.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let told: Vec<&str> = told.map(str::trim).filter(|line| !line.is_empty()).collect();
    let told = told.join(" ");
    let told = told.strip_prefix("error: ").unwrap_or(&told).replace(" tip: ", "; ");
    format!("{told} (--help tells more)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_told_in_one_line() {
        for (line, expected) in [
            (&["cricket", "pods", "--outptu", "json"][..], "unexpected argument '--outptu' found (--help tells more)"),
            (&["cricket", "run"], "the following required arguments were not provided: <IMAGE> (--help tells more)"),
            (
                &["cricket", "pods", "--output", "xml"],
                "invalid value 'xml' for '--output <OUTPUT>' [possible values: table, json] (--help tells more)",
            ),
        ] {
            let error = Cli::try_parse_from(line).expect_err("a mistake");
            assert_eq!(mistake(&error.render().to_string()), expected);
        }
    }
}
