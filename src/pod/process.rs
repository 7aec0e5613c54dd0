//! Processes that a dead supervisor may have left: told by pid and start time, ended through a pidfd.

use std::path::PathBuf;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::pod::record::ProcessRecord;

/// Takes down who a process is.
pub(crate) fn describe(pid: i32, boot_id: &str) -> ProcessRecord {
    ProcessRecord { pid, start_time: start_time(pid).unwrap_or_default(), boot_id: boot_id.to_owned() }
}

/// Kills the process if it is still the same one. It may be gone already: that is fine.
pub(crate) fn kill(process: &ProcessRecord, boot_id: &str) {
    let Some(pid) = Pid::from_raw(process.pid).filter(|_| process.boot_id == boot_id && process.start_time != 0) else {
        return;
    };
    // The descriptor is taken first: after it the number cannot come to mean another process.
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if start_time(process.pid) == Some(process.start_time) {
        let _ = pidfd_send_signal(&descriptor, Signal::KILL);
    }
}

/// Field 22 of /proc/PID/stat; the name in field 2 may hold anything, so counting begins behind its last bracket.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(PathBuf::from("/proc").join(pid.to_string()).join("stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_process_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a child");
        let mut record = describe(child.id() as i32, "boot");
        assert_ne!(record.start_time, 0);
        kill(&record, "another boot");
        record.start_time += 1;
        kill(&record, "boot");
        assert!(child.try_wait().expect("asked").is_none());
        record.start_time -= 1;
        kill(&record, "boot");
        assert!(!child.wait().expect("ended").success());
    }
}
