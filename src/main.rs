//! The binary: parse the command line, dispatch. No thread exists before a command starts one.
//!
//! What runs where a container could reach it (`cricket supervise`) is executed from a sealed mount of this binary
//! (`sys::sealed`), made by the daemon before its first thread; the command refuses to run from anywhere else.

use std::process::ExitCode;

use clap::Parser;
use cricket::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("cricket: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes; a cause that the words before it tell already is not told again.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.contains(&cause) {
        true => told,
        false if told.is_empty() => cause,
        false => format!("{told}: {cause}"),
    })
}
