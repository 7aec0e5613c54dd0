//! While the daemon lives, its node has a process: one that was killed is replaced, in the same namespaces, so that a
//! later `cricket enter` or a restarted daemon finds the node that the pods are in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::record::NodeRecord;
use super::{Node, NodeKind, RootlessError, start_again};
use crate::sys::process::wait_until_readable;

/// How long one wait is; it is repeated.
const WAIT: Duration = Duration::from_secs(24 * 3600);
/// A node process that is killed again and again costs at most one start in this time.
const PAUSE: Duration = Duration::from_secs(1);
/// The thread does nothing that needs more.
const STACK_BYTES: usize = 128 << 10;

/// Starts the thread that does it; none where the node is not made by us. It ends with this process, or after an error
/// that it logs.
pub fn keep(state: PathBuf, node: Arc<Node>) -> std::io::Result<()> {
    if node.kind != NodeKind::Made {
        return Ok(());
    }
    let work = move || {
        if let Err(error) = watch(&state, &node) {
            tracing::error!("the node process is gone and cannot be started again: {error}");
        }
    };
    std::thread::Builder::new().name("node-keeper".into()).stack_size(STACK_BYTES).spawn(work).map(drop)
}

fn watch(state: &std::path::Path, node: &Node) -> Result<(), RootlessError> {
    loop {
        // Finds the living one, or starts another.
        let record: NodeRecord = start_again(state, node)?;
        let opened = record.process.open().map_err(RootlessError::io("watch the node process"))?;
        if let Some(process) = opened {
            while !wait_until_readable(&process, WAIT).map_err(RootlessError::io("watch the node process"))? {}
        }
        tracing::warn!("the node process (pid {}) is gone; another is started in its namespaces", record.process.pid);
        std::thread::sleep(PAUSE);
    }
}
