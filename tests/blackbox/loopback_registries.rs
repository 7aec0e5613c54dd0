//! A registry at a loopback address is the node's own, where one listens there, else the host's; a key says otherwise.

use std::net::TcpListener;

use crate::node::{Node, Registry, fail, succeed};

/// Writes where a registry is dialled.
fn dial(node: &Node, address: &str, network: &str) {
    let rules = node.dir.join("certs.d").join(address);
    std::fs::create_dir_all(&rules).expect("a directory of ours");
    std::fs::write(rules.join("hosts.toml"), format!("server = \"http://{address}\"\nnetwork = \"{network}\"\n"))
        .expect("a file of ours");
}

#[tokio::test]
async fn a_loopback_registry_is_dialled_in_the_node_first_and_where_a_key_says() {
    let node = Node::prepare().await;
    let on_host = Registry::start(&node).await;
    let node = node.begin().await;
    let in_node = Registry::start_inside(&node).await;
    let of_host = on_host.push("busybox", "of/host:1");
    let of_node = in_node.push("busybox", "of/node:1");
    // Whoever dials the host gets no answer from this one.
    let silent = TcpListener::bind(&in_node.address).expect("a port that is free on the host");

    succeed(&mut node.cricket(["image", "pull", &of_node]));
    succeed(&mut node.cricket(["image", "pull", &of_host]));
    dial(&node, &on_host.address, "node");
    let (_, said) = fail(&mut node.cricket(["image", "pull", &of_host]));
    assert!(said.contains("RegistryUnavailable") && said.contains("node's network"), "{said}");
    dial(&node, &on_host.address, "host");
    succeed(&mut node.cricket(["image", "pull", &of_host]));
    dial(&node, &in_node.address, "node");
    succeed(&mut node.cricket(["image", "pull", &of_node]));
    drop(silent);
    dial(&node, &in_node.address, "moon");
    let (_, said) = fail(&mut node.cricket(["image", "pull", &of_node]));
    assert!(said.contains("hosts.toml") && said.contains("moon"), "{said}");
    drop(in_node);
    node.stop_and_account().await;
}
