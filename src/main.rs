//! The binary: parse the command line, dispatch. No thread exists before a command starts one.

use std::process::ExitCode;

use clap::Parser;
use cricket::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("cricket: {error:#}");
            ExitCode::FAILURE
        }
    }
}
