//! The way out of a node that has a network namespace of its own.

use std::fs::OpenOptions;

use super::{Finding, NodeKind, program};

const DRIVERS: [&str; 2] = ["pasta", "slirp4netns"];

/// Nothing where the node has the network already.
pub fn way_out(kind: NodeKind) -> Vec<Finding> {
    if kind != NodeKind::Made {
        return Vec::new();
    }
    vec![tap(), driver()]
}

fn tap() -> Finding {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::ok("/dev/net/tun", "a driver can give pods a way out"),
        Err(error) => Finding::warn(
            "/dev/net/tun",
            format!("{error}: pods have no way to other machines"),
            "sudo modprobe tun && sudo chmod 666 /dev/net/tun",
        ),
    }
}

fn driver() -> Finding {
    match DRIVERS.iter().find_map(|name| program(name)) {
        Some(path) => Finding::ok("outbound driver", path.display().to_string()),
        None => Finding::warn(
            "outbound driver",
            "neither pasta nor slirp4netns is installed: pods have no way to other machines",
            "sudo apt install passt (Debian, Ubuntu), sudo dnf install passt (Fedora)",
        ),
    }
}
