//! What of cgroup v2 would be ours, controller by controller.

use std::fs;

use super::{Finding, NodeKind};
use crate::rootless::cgroups::{self, WANTED};

const DELEGATE: &str = "printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | \
    sudo install -D -m 644 /dev/stdin /etc/systemd/system/user@.service.d/delegate.conf && \
    sudo systemctl daemon-reload, then log in again";
const SCOPE: &str = "start it in a scope of its own: systemd-run --user --scope -p Delegate=yes cricket serve";
const UNIFIED: &str = "boot with the kernel parameter systemd.unified_cgroup_hierarchy=1";

/// One finding a controller, or one for all where there is no cgroup.
pub fn delegation(kind: NodeKind) -> Vec<Finding> {
    if !cgroups::is_unified() {
        let meaning = "no unified cgroup v2 on /sys/fs/cgroup: containers run without limits";
        return vec![Finding::warn("cgroup v2", meaning, UNIFIED)];
    }
    let directory = match kind {
        NodeKind::Made => cgroups::delegated_base(),
        _ => cgroups::own().map_err(|error| error.to_string()),
    };
    match directory {
        Ok(directory) => {
            let offered = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
            WANTED.iter().map(|controller| one(controller, &offered)).collect()
        }
        Err(reason) => vec![Finding::warn("cgroup v2", reason, SCOPE)],
    }
}

fn one(controller: &str, offered: &str) -> Finding {
    let name = format!("cgroup {controller}");
    match offered.split_ascii_whitespace().any(|word| word == controller) {
        true => Finding::ok(name, "delegated"),
        false => Finding::warn(name, cgroups::what_it_limits(controller), DELEGATE),
    }
}
