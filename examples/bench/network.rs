//! What a pod's network costs: the life of a pod with a network of its own, less that of one on the node's. Which
//! network it is, built in or plugins, is the configuration's: `scripts/bench-network` measures both.

use std::time::{Duration, Instant};

use cricket::proto::cri;

use super::account::Account;
use super::node::Node;
use super::table::Table;

/// Of each direction, by the project's specification.
const GOAL_MILLISECONDS: f64 = 2.0;

/// CPU and wall time of one pod: to come up, and to go.
struct Life {
    up: (Duration, Duration),
    down: (Duration, Duration),
}

impl Life {
    /// What this costs more than `other`.
    fn beyond(&self, other: &Self) -> Self {
        let less =
            |a: (Duration, Duration), b: (Duration, Duration)| (a.0.saturating_sub(b.0), a.1.saturating_sub(b.1));
        Self { up: less(self.up, other.up), down: less(self.down, other.down) }
    }
}

/// See the module.
pub async fn networks(node: &mut Node, account: &mut Account, table: &mut Table, count: usize) -> anyhow::Result<()> {
    let wanted = node.network;
    node.network = cri::NamespaceMode::Node;
    let without = life(node, account, count).await?;
    node.network = cri::NamespaceMode::Pod;
    for (publish, what) in [(false, ""), (true, " and a host port")] {
        node.publish = publish;
        let own = life(node, account, count).await?;
        let network = own.beyond(&without);
        table.cpu(format!("RunPodSandbox with a network{what}"), own.up.0, own.up.1, None);
        table.cpu(format!("  of it the network{what}"), network.up.0, network.up.1, Some(GOAL_MILLISECONDS));
        table.cpu(format!("  its removal{what}"), network.down.0, network.down.1, Some(GOAL_MILLISECONDS));
    }
    (node.network, node.publish) = (wanted, false);
    Ok(())
}

/// Pods one after another. They are ended by another daemon (see account.rs), whose start is not counted.
async fn life(node: &mut Node, account: &mut Account, count: usize) -> anyhow::Result<Life> {
    let n = u32::try_from(count)?;
    let (before, started) = (account.sample()?.total(), Instant::now());
    let mut pods = Vec::new();
    for _ in 0..count {
        pods.push(node.run_pod().await?);
    }
    let wall_up = started.elapsed();
    let up = account.sample()?.total().saturating_sub(before);
    node.restart().await?;
    let start = account.follow(node.daemon_pid())?;
    let started = Instant::now();
    for pod in &pods {
        node.remove_pod(pod).await?;
    }
    let wall_down = started.elapsed();
    let whole = account.sample()?.total().saturating_sub(before).saturating_sub(start);
    Ok(Life { up: (up / n, wall_up / n), down: (whole.saturating_sub(up) / n, wall_down / n) })
}
