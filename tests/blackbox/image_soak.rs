//! The daemon is killed at random moments of pulls and removals: the next one finds a store that is whole, nothing is
//! leaked, and no finished layer is fetched again. CRICKET_SOAK says how often; CI has [`KILLS`].

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::node::{Node, Registry, archive_of, layer_of, succeed, text};

/// Unless CRICKET_SOAK says otherwise.
const KILLS: u64 = 20;
/// How many layers, and how large.
const LAYERS: u64 = 6;
const LAYER_BYTES: usize = 3 << 20;
/// A pull of that takes about this long here.
const LONGEST_WAIT_MILLISECONDS: u64 = 400;

/// Names in a directory of the image service.
fn names(node: &Node, directory: &str) -> Vec<String> {
    let path = node.root().join("images").join(directory);
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Numbers that look like chance and are the same in each run.
pub fn chance(round: u64) -> u64 {
    let mut state = (round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state ^= state >> 31;
    state.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
}

#[tokio::test]
async fn a_killed_daemon_leaves_a_store_that_is_whole() {
    let kills = std::env::var("CRICKET_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let node = Node::prepare().await;
    let registry = Registry::start(&node).await;
    let archive = node.dir.join("soak.tar");
    let layers: Vec<_> = (0..LAYERS).map(|n| layer_of(&format!("file-{n}"), n, LAYER_BYTES)).collect();
    std::fs::write(&archive, archive_of("soak.test/soak:1", &layers)).expect("a file of ours");
    let name = registry.push_archive(&archive, "soak/soak:1");
    let mut node = node.begin().await;
    let mut here = false;
    for round in 0..kills {
        let arguments = if here { ["image", "remove", &name] } else { ["image", "pull", &name] };
        let mut client = node.cricket(arguments);
        let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("our client");
        // Chance is the point here: a removal takes a few milliseconds of it, a pull all of them.
        let limit = if here { LONGEST_WAIT_MILLISECONDS / 20 } else { LONGEST_WAIT_MILLISECONDS };
        tokio::time::sleep(Duration::from_millis(chance(round) % limit)).await;
        node.kill_daemon();
        client.wait().expect("our client");
        node.serve();
        node.wait_until_ready().await;
        here = check(&node, &name, round);
        // Whatever layers are here are not fetched again.
        if !here && round % 4 == 3 {
            let finished = names(&node, "layers").len();
            let pulled = succeed(&mut node.cricket(["image", "pull", "--output", "json", &name]));
            let pulled: Value = serde_json::from_slice(&pulled.stdout).expect("JSON");
            assert_eq!(pulled["layers"]["reused"], finished, "round {round}: {pulled}");
            here = check(&node, &name, round);
            assert!(here);
        }
    }
    succeed(&mut node.cricket(["image", "pull", &name]));
    succeed(&mut node.cricket(["image", "remove", &name]));
    crate::node::eventually("everything is gone", || names(&node, "layers").is_empty().then_some(())).await;
    assert_eq!(names(&node, "images"), Vec::<String>::new());
    node.stop_and_account().await;
}

/// The store after a start; answers whether the image is there.
fn check(node: &Node, name: &str, round: u64) -> bool {
    let layers = names(node, "layers");
    assert!(layers.iter().all(|name| !name.starts_with('.')), "round {round}: {layers:?}");
    assert!(names(node, "spool").is_empty(), "round {round}");
    let records = names(node, "images");
    let listed = text(&succeed(&mut node.cricket(["image", "list"])).stdout);
    let here = listed.contains(name);
    assert_eq!(records.len(), if here { 2 } else { 0 }, "round {round}: {records:?} {listed}");
    let verified = succeed(&mut node.cricket(["image", "verify", "--output", "json"]));
    let verified: Value = serde_json::from_slice(&verified.stdout).expect("JSON");
    let images = verified["images"].as_array().expect("a list");
    assert!(images.iter().all(|image| image["verdict"] == "whole"), "round {round}: {verified}");
    assert!(!here || layers.len() as u64 == LAYERS, "round {round}: {layers:?}");
    here
}
