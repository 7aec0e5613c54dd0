//! What a person types: `cricket run` and its neighbours, for people and for programs.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::node::{DEMO, Node, eventually, fail, succeed, text};

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
async fn lists_tell_programs_and_people_the_same() {
    let node = Node::start().await;
    succeed(&mut node.cricket(["run", "--detach", "--name", "lists", DEMO, "exit", "7"]));
    let exited = || json(&succeed(&mut node.cricket(["ps", "--all", "--output", "json"])));
    eventually("the container exits", || (exited()[0]["state"] == "exited").then_some(())).await;
    let container = exited()[0].clone();
    assert_eq!((&container["name"], &container["exit_code"]), (&"lists".into(), &7.into()));
    let table = text(&succeed(&mut node.cricket(["ps", "--all"])).stdout);
    assert!(table.contains("exited (7)"), "{table}");
    let pod = json(&succeed(&mut node.cricket(["pods", "--output", "json"])))[0].clone();
    assert_eq!((&pod["name"], &pod["state"], &pod["id"]), (&"lists".into(), &"ready".into(), &container["pod_id"]));
    let (_, said) = fail(&mut node.cricket(["run", "--name", "lists", DEMO]));
    assert!(said.contains("has the name lists already"), "{said}");
    succeed(&mut node.cricket(["rm", "lists"]));
    assert_eq!(exited(), serde_json::json!([]));
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
        &["run"],
        &["pods", "--no-such-flag"],
        &["pods", "--output", "xml"],
        &["--log-level", "a=b=c", "pods"],
    ] {
        let (status, said) = fail(&mut node.cricket(arguments));
        assert!(matches!(status, Some(1 | 2 | 125)), "{arguments:?}: {status:?}");
        assert_eq!(said.trim().lines().count(), 1, "{arguments:?}: {said}");
    }
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_run_quietly_and_nothing_is_left() {
    const ENDED_BY_SIGPIPE: i32 = 141;
    let node = Node::start().await;
    let mut run = node.cricket(["run", DEMO, "lines", "0", "1", "unread"]);
    let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cricket run");
    let mut line = String::new();
    BufReader::new(run.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let ended = run.wait_with_output().expect("its end");
    assert_eq!((ended.status.code(), text(&ended.stderr).as_str()), (Some(ENDED_BY_SIGPIPE), ""));
    assert_eq!(json(&succeed(&mut node.cricket(["pods", "--output", "json"]))), serde_json::json!([]));
    // Nobody to be told: the status alone says it.
    let closed = Stdio::from(std::fs::File::options().write(true).open("/dev/full").expect("/dev/full"));
    let status = node.cricket(["logs", "nobody"]).stderr(closed).status().expect("cricket logs");
    assert_eq!(status.code(), Some(1));
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_wrong_value_in_the_configuration_is_named_with_its_line() {
    let node = Node::prepare().await;
    let file = node.dir.join("cricket.toml");
    std::fs::write(&file, "\n[network]\npod_cidrs = [\"10.0.0.0\"]\n").expect("written");
    let (_, said) = fail(node.cricket(["serve"]).env("CRICKET_CONFIG", &file));
    assert!(
        said.contains("cricket.toml, line 3, key network.pod_cidrs") && said.contains("\"10.0.0.0\" is not a range"),
        "{said}"
    );
    assert_eq!(said.trim().lines().count(), 1, "{said}");
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
async fn a_daemon_takes_neither_the_state_nor_the_root_of_another() {
    let mut node = Node::start().await;
    let config = crate::node::pod(&node, "mine");
    let pod = node.run_pod(&config).await;
    let other = node.dir.join("other");
    std::fs::create_dir_all(&other).expect("a directory");
    let socket = other.join("cricket.sock");
    let socket = ["--socket", socket.to_str().expect("a text")];
    let elsewhere = other.to_str().expect("a text").to_owned();
    let attempt = |node: &Node, option: &str| {
        let mut serve = node.cricket(["serve", option, &elsewhere]);
        fail(serve.args(socket)).1
    };
    for option in ["--root", "--state"] {
        let said = attempt(&node, option);
        assert!(said.contains("uses") && said.contains("already"), "{option}: {said}");
    }
    node.kill_daemon();
    for (option, named) in [("--root", node.root()), ("--state", node.dir.join("run"))] {
        let said = attempt(&node, option);
        assert!(said.contains(&named.display().to_string()), "{option}: {said}");
    }
    node.serve();
    node.wait_until_ready().await;
    assert_eq!(node.pod_status(&pod).await.state(), cricket::proto::cri::PodSandboxState::SandboxReady);
    node.remove_pod(&pod).await;
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
