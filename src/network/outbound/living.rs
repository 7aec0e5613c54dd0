//! Drivers that run, found without their record: it may be damaged, and a daemon may be killed before it has written it.
//! A second driver would find the node's tap taken. A driver is known by its program and by the network namespace that
//! is its standard input.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Driver, NAMESPACE};
use crate::sys::process::{ProcessId, by_command_line};

/// One that runs.
#[derive(Debug)]
pub struct Living {
    pub driver: Driver,
    pub process: ProcessId,
    /// Whether the host's loopback addresses are reached through it; none: it was started otherwise than we do it.
    pub host_loopback: Option<bool>,
}

/// All that serve the namespace with this inode.
pub fn of_namespace(network: u64) -> io::Result<Vec<Living>> {
    let found = by_command_line(told)?.into_iter().filter(|(process, _)| serves(process, network));
    Ok(found.map(|(process, (driver, host_loopback))| Living { driver, process, host_loopback }).collect())
}

/// What its command line tells of a driver.
fn told(words: &[&OsStr]) -> Option<(Driver, Option<bool>)> {
    let (program, arguments) = words.split_first()?;
    let name = Path::new(program).file_name()?;
    let driver = Driver::ALL.into_iter().find(|driver| name == driver.program())?;
    let arguments: Vec<&str> = arguments.iter().map(|word| word.to_str()).collect::<Option<_>>()?;
    let is_as_with = |wish: &bool| driver.arguments(*wish) == arguments;
    arguments.contains(&NAMESPACE).then(|| (driver, [true, false].into_iter().find(is_as_with)))
}

fn serves(process: &ProcessId, network: u64) -> bool {
    std::fs::metadata(format!("/proc/{}/fd/0", process.pid)).is_ok_and(|input| input.ino() == network)
}
