//! What a user has on the machine: processes, mounts and abstract or listening sockets, to be compared later.

use std::collections::BTreeMap;
use std::path::Path;

use super::owner;

/// A moment's account.
#[derive(Debug, Clone)]
pub struct Footprint {
    /// Process id to its name and state.
    processes: BTreeMap<u32, String>,
    /// Lines of the mount table without their numbers.
    mounts: Vec<String>,
}

impl Footprint {
    /// Of this user and of his subordinate ids.
    pub fn take() -> Self {
        let owners = Owners::of_this_user();
        let entries = std::fs::read_dir("/proc").expect("/proc is mounted");
        let processes = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| owners.include(*pid))
            .filter_map(|pid| Some((pid, describe(pid)?)))
            // Root's are the machine's, too, which come and go.
            .filter(|(_, what)| !rustix::process::getuid().is_root() || what.contains("cricket"))
            .collect();
        Self { processes, mounts: mount_points("/proc/self/mountinfo") }
    }

    /// What is here that was not there before.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let new = self.processes.iter().filter(|(pid, _)| !before.processes.contains_key(pid));
        let processes = new.map(|(pid, what)| format!("process {pid}: {what}"));
        let mounts = self.mounts.iter().filter(|mount| !before.mounts.contains(mount));
        processes.chain(mounts.map(|mount| format!("mount {mount}"))).collect()
    }

    /// How many processes.
    pub fn process_count(&self) -> usize {
        self.processes.len()
    }
}

/// Mount points of a mount table that are for pods: the machine's own come and go.
pub fn mount_points(table: impl AsRef<Path>) -> Vec<String> {
    let text = std::fs::read_to_string(table).unwrap_or_default();
    let places = text.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned));
    places.filter(|place| place.contains("/cricket")).collect()
}

/// Processes of the demo image whose command line has `marker` in it.
pub fn processes_with(marker: &str) -> Vec<u32> {
    let footprint = Footprint::take();
    let of_ours = footprint.processes.iter().filter(|(_, what)| what.contains(": demo ") && what.contains(marker));
    of_ours.map(|(pid, _)| *pid).collect()
}

/// The parent of a process.
pub fn parent_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// A process that is no thread of this test and not dead.
fn describe(pid: u32) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    Some(format!("{} ({}), parent {}: {command}", field("Name:"), field("State:"), field("PPid:")))
}

/// This user's ids.
struct Owners(Vec<std::ops::Range<u32>>);

impl Owners {
    fn of_this_user() -> Self {
        let uid = rustix::process::getuid().as_raw();
        let name = std::env::var("USER").unwrap_or_default();
        let table = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
        let subordinate = table.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let who = fields.next()?;
            let (start, count) = (fields.next()?.parse::<u32>().ok()?, fields.next()?.parse::<u32>().ok()?);
            (who == name || who == uid.to_string()).then_some(start..start.saturating_add(count))
        });
        Self(std::iter::once(uid..uid + 1).chain(subordinate).collect())
    }

    fn include(&self, pid: u32) -> bool {
        // A non-dumpable process's directory belongs to root; its status tells the truth.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let real = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        real.or_else(|| owner(Path::new(&format!("/proc/{pid}"))))
            .is_some_and(|uid| self.0.iter().any(|range| range.contains(&uid)))
    }
}
