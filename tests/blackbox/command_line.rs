//! What a person types: `cricket run` and its neighbours, for people and for programs.

use serde_json::Value;

use crate::node::{DEMO, Node, fail, succeed, text};

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test]
async fn the_first_run_needs_no_registry() {
    let node = Node::start().await;
    let said = text(&succeed(&mut node.cricket(["run", DEMO])).stdout);
    assert!(said.contains("Hello from a container"), "{said}");
    assert!(text(&succeed(&mut node.cricket(["image", "list"])).stdout).contains("cricket.local/demo"));
    node.stop_and_account().await;
}

#[tokio::test]
async fn run_ends_with_the_status_of_the_container() {
    let node = Node::start().await;
    let (status, _) = fail(&mut node.cricket(["run", DEMO, "exit", "42"]));
    assert_eq!(status, Some(42));
    let containers = json(&succeed(&mut node.cricket(["ps", "--output", "json"])));
    let pods = json(&succeed(&mut node.cricket(["pods", "--output", "json"])));
    assert!(containers.is_array() && pods.is_array(), "{containers} {pods}");
    node.stop_and_account().await;
}

#[tokio::test]
async fn errors_are_one_line_that_says_what_to_do() {
    let node = Node::start().await;
    for arguments in [
        &["logs", "nobody"][..],
        &["exec", "nobody", "true"],
        &["image", "load", "/no/such/file"],
        &["image", "pull", "127.0.0.1:1/none:1"],
        &["run", "Not An Image"],
    ] {
        let (status, said) = fail(&mut node.cricket(arguments));
        assert!(matches!(status, Some(1 | 125)), "{arguments:?}: {status:?}");
        assert_eq!(said.trim().lines().count(), 1, "{arguments:?}: {said}");
    }
    node.stop_and_account().await;
}

#[tokio::test]
async fn without_a_daemon_it_says_how_to_start_one() {
    let node = Node::prepare().await;
    let (_, said) = fail(&mut node.cricket(["ps"]));
    assert!(said.contains("cricket serve"), "{said}");
}

#[tokio::test]
async fn a_second_daemon_on_the_same_root_is_refused_by_name() {
    let node = Node::start().await;
    let (_, said) = fail(&mut node.cricket(["serve"]));
    assert!(said.contains(&node.root().display().to_string()), "{said}");
    succeed(&mut node.cricket(["ps"]));
    node.stop_and_account().await;
}

#[tokio::test]
async fn enter_keeps_status_and_environment() {
    let node = Node::start().await;
    let said = succeed(node.cricket(["enter", "--", "sh", "-c", "id -u; echo $COLOUR"]).env("COLOUR", "green"));
    assert_eq!(text(&said.stdout), "0\ngreen\n");
    assert_eq!(fail(&mut node.cricket(["enter", "--", "sh", "-c", "exit 9"])).0, Some(9));
    node.stop_and_account().await;
}

#[tokio::test]
async fn check_says_whether_it_will_run() {
    let node = Node::prepare().await;
    let output = succeed(&mut node.cricket(["check", "--output", "json"]));
    assert!(json(&output).is_array() || json(&output).is_object());
    assert!(!succeed(&mut node.cricket(["check"])).stdout.is_empty());
}
