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
            eprintln!("cricket: {error:#}");
            ExitCode::FAILURE
        }
    }
}
