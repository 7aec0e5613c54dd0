//! `STATE/outbound.json`: which processes are the way out. The keeper writes it; daemons read it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::driver::Driver;
use super::resolvers::HostResolvers;
use crate::store::{self, RecordError};
use crate::sys::process::ProcessId;

const VERSION: u32 = 1;

/// The start times tell processes from later ones of the same number.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Which program it is.
    pub driver: Driver,
    /// The driver's process.
    #[serde(flatten)]
    pub process: ProcessId,
    /// Who keeps it running. None: an earlier release started it, and a daemon did that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<ProcessId>,
    /// Inode of the network namespace that it serves; a driver may outlive a node that was killed.
    pub network: u64,
    /// Whether the host's loopback addresses are reached through it.
    #[serde(default)]
    pub host_loopback: bool,
    /// Which resolver the host had when it was started; unspecified: none. None: an earlier release did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resolver: Option<Ipv4Addr>,
    /// The same of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resolver_v6: Option<Ipv6Addr>,
}

impl Record {
    /// Of a driver that was started now.
    pub fn new(
        driver: Driver,
        process: ProcessId,
        keeper: Option<ProcessId>,
        network: u64,
        host_loopback: bool,
        resolvers: HostResolvers,
    ) -> Self {
        let (resolver, resolver_v6) = (Some(resolvers.v4), Some(resolvers.v6));
        Self { version: VERSION, driver, process, keeper, network, host_loopback, resolver, resolver_v6 }
    }

    /// Whether it runs, or is about to be started again.
    pub fn is_alive(&self) -> bool {
        self.process.is_alive() || self.keeper.is_some_and(|keeper| keeper.is_alive())
    }

    /// Whether pods ask this driver for a resolver that the host has no more.
    pub fn asks_elsewhere(&self, now: HostResolvers) -> bool {
        let v4 = now.v4.is_loopback() && self.resolver.is_some_and(|then| then != now.v4);
        let v6 = now.v6.is_loopback() && self.resolver_v6.is_some_and(|then| then != now.v6);
        self.driver == Driver::Pasta && (v4 || v6)
    }
}

/// Where it is.
pub fn path(state: &Path) -> PathBuf {
    state.join("outbound.json")
}

/// Replaces it.
pub fn write(state: &Path, record: &Record) -> io::Result<()> {
    store::write(&path(state), record).map_err(io::Error::other)
}

/// Which driver there is, as far as its record says.
pub fn read(state: &Path) -> Result<Option<Record>, RecordError> {
    store::read_or_set_aside(&path(state), VERSION, "which process is the way out is not known any more")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(driver: Driver, resolver: Option<Ipv4Addr>, resolver_v6: Option<Ipv6Addr>) -> Record {
        let process = ProcessId { pid: 1, start_time: 1 };
        Record {
            version: VERSION,
            driver,
            process,
            keeper: None,
            network: 1,
            host_loopback: false,
            resolver,
            resolver_v6,
        }
    }

    #[test]
    fn a_damaged_record_is_set_aside_and_a_later_one_left_alone() {
        let state = std::env::temp_dir().join(format!("cricket-outbound-{}", std::process::id()));
        std::fs::create_dir_all(&state).expect("a directory");
        let (path, aside) = (path(&state), state.join("outbound.json.unreadable"));
        std::fs::write(&path, "{\"version\": 1, \"dri").expect("written");
        assert!(read(&state).expect("set aside").is_none());
        assert!(aside.exists() && !path.exists());
        std::fs::write(&path, "{\"version\": 1000, \"driver\": [\"another\"]}").expect("written");
        assert!(read(&state).expect_err("a later one").is_newer());
        let error = super::super::Outbound::stop(&state).expect_err("it is not ours to end").to_string();
        assert!(error.contains("a newer cricket wrote it") && path.exists(), "{error}");
        std::fs::remove_dir_all(&state).expect("removed");
    }

    #[test]
    fn only_another_resolver_that_pods_reach_through_it_replaces_a_driver() {
        let (stub, other, remote) = ([127, 0, 0, 53], [127, 0, 0, 1], [9, 9, 9, 9]);
        for (driver, before, now, expected) in [
            (Driver::Pasta, Some(stub), other, true),
            (Driver::Pasta, Some(remote), stub, true),
            (Driver::Pasta, Some([0; 4]), stub, true),
            (Driver::Pasta, Some(stub), stub, false),
            (Driver::Pasta, Some(stub), remote, false),
            (Driver::Pasta, Some(stub), [0; 4], false),
            (Driver::Pasta, None, stub, false),
            (Driver::Slirp4netns, Some(stub), other, false),
        ] {
            let then = record(driver, before.map(Ipv4Addr::from), None);
            let now = HostResolvers { v4: now.into(), v6: Ipv6Addr::UNSPECIFIED };
            assert_eq!(then.asks_elsewhere(now), expected, "{driver:?} {before:?} {now:?}");
        }
        for (before, now, expected) in [
            (Some(Ipv6Addr::UNSPECIFIED), Ipv6Addr::LOCALHOST, true),
            (Some(Ipv6Addr::LOCALHOST), Ipv6Addr::LOCALHOST, false),
            (None, Ipv6Addr::LOCALHOST, false),
        ] {
            let then = record(Driver::Pasta, Some(Ipv4Addr::UNSPECIFIED), before);
            let now = HostResolvers { v4: Ipv4Addr::UNSPECIFIED, v6: now };
            assert_eq!(then.asks_elsewhere(now), expected, "{before:?} {now:?}");
        }
    }

    #[test]
    fn records_of_earlier_releases_are_read() {
        for path in store::of_earlier_releases("outbound.json") {
            let record = read(path.parent().expect("a directory")).expect("read").expect("there");
            assert!(
                record.driver == Driver::Pasta && record.resolver.is_none() && record.keeper.is_none(),
                "{record:?}"
            );
        }
    }
}
