//! Kubernetes' own command line against the socket: what people type, in the order in which they type it.

use serde_json::{Value, json};

use crate::node::{Node, Registry, eventually, fail, log_lines, succeed, text};

/// Host network, so that no pod network is needed: the value of NamespaceMode.NODE.
const NODE: i32 = 2;

fn write(node: &Node, name: &str, value: &Value) -> String {
    let path = node.dir.join(name);
    std::fs::write(&path, value.to_string()).expect("a file of ours");
    path.display().to_string()
}

fn pod_config(node: &Node) -> Value {
    let logs = node.logs().join("walk");
    std::fs::create_dir_all(&logs).expect("a directory of ours");
    json!({
        "metadata": {"name": "walk", "uid": "walk-uid", "namespace": "default", "attempt": 1},
        "log_directory": logs,
        "labels": {"walks": "yes"},
        "linux": {"security_context": {"namespace_options": {"network": NODE}}},
    })
}

fn container_config(image: &str) -> Value {
    let script = "echo to-stdout; echo to-stderr >&2; trap 'exit 7' TERM; while :; do sleep 0.05; done";
    json!({
        "metadata": {"name": "walker", "attempt": 0},
        "image": {"image": image},
        "command": ["sh", "-c", script],
        "log_path": "walker.log",
        "linux": {"security_context": {"namespace_options": {"network": NODE, "pid": 1}}},
    })
}

struct Crictl<'a>(&'a Node);

impl Crictl<'_> {
    /// What it writes, without the end of the line.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        text(&succeed(&mut self.0.crictl(arguments)).stdout).trim().to_owned()
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments)).expect("JSON")
    }
}

#[tokio::test]
async fn crictl_walks_from_pull_to_rmi() {
    let node = Node::prepare().await;
    let registry = Registry::start(&node).await;
    let image = registry.push("busybox", "walk/busybox:1");
    let node = node.begin().await;
    let crictl = Crictl(&node);

    assert!(crictl.run(&["version"]).contains("cricket"), "the runtime's name");
    assert_eq!(crictl.json(&["info"])["status"]["conditions"][0]["status"], true);

    assert!(crictl.run(&["pull", &image]).contains("up to date"), "crictl's words after a pull");
    let images = crictl.json(&["images", "-o", "json"]);
    assert_eq!(images["images"][0]["repoTags"][0], image.as_str());
    assert!(crictl.json(&["imagefsinfo"])["status"]["imageFilesystems"][0]["usedBytes"]["value"].is_string());

    let pod_file = write(&node, "pod.json", &pod_config(&node));
    let container_file = write(&node, "container.json", &container_config(&image));
    let pod = crictl.run(&["runp", &pod_file]);
    let container = crictl.run(&["create", &pod, &container_file, &pod_file]);
    assert_eq!(crictl.json(&["inspect", &container])["status"]["state"], "CONTAINER_CREATED");
    crictl.run(&["start", &container]);

    let log = node.log_of("walk", "walker");
    eventually("both lines are in the log", || (log.exists() && log_lines(&log).len() == 2).then_some(())).await;
    look_around(&crictl, &pod, &container, &image);
    wind_up(&crictl, &pod, &container, &image);
    node.stop_and_account().await;
}

fn look_around(crictl: &Crictl<'_>, pod: &str, container: &str, image: &str) {
    let listed = crictl.json(&["ps", "-o", "json"]);
    assert_eq!(listed["containers"][0]["id"], container);
    assert_eq!(crictl.run(&["pods", "-q"]), pod);
    let inspected = crictl.json(&["inspect", container]);
    assert_eq!(inspected["status"]["state"], "CONTAINER_RUNNING");
    assert_eq!(inspected["status"]["image"]["image"], image);
    assert_eq!(crictl.json(&["inspectp", pod])["status"]["labels"]["walks"], "yes");
    assert_eq!(crictl.run(&["exec", "-s", container, "echo", "hello", "from", "inside"]), "hello from inside");
    let (status, said) = fail(&mut crictl.0.crictl(["exec", "-s", container, "sh", "-c", "exit 5"]));
    assert!(status.is_some_and(|status| status != 0) && said.contains('5'), "exec's status: {said}");
    let logs = succeed(&mut crictl.0.crictl(["logs", container]));
    assert_eq!((text(&logs.stdout).as_str(), text(&logs.stderr).as_str()), ("to-stdout\n", "to-stderr\n"));
}

fn wind_up(crictl: &Crictl<'_>, pod: &str, container: &str, image: &str) {
    crictl.run(&["stop", "--timeout", "10", container]);
    let status = &crictl.json(&["inspect", container])["status"];
    assert_eq!(
        (&status["state"], &status["exitCode"], &status["reason"]),
        (&json!("CONTAINER_EXITED"), &json!(7), &json!("Error"))
    );
    crictl.run(&["rm", container]);
    fail(&mut crictl.0.crictl(["inspect", container]));
    crictl.run(&["stopp", pod]);
    assert_eq!(crictl.json(&["inspectp", pod])["status"]["state"], "SANDBOX_NOTREADY");
    crictl.run(&["rmp", pod]);
    assert_eq!(crictl.run(&["pods", "-q"]), "");
    crictl.run(&["rmi", image]);
    assert_eq!(crictl.run(&["images", "-q"]), "");
}

#[tokio::test]
async fn an_image_comes_through_a_mirror_under_its_own_name() {
    let node = Node::prepare().await;
    let registry = Registry::start(&node).await;
    registry.push("busybox", "e2e-test-images/busybox:1.29-2");
    registry.serve_as(&node, "registry.k8s.io");
    let node = node.begin().await;
    let name = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
    succeed(&mut node.crictl(["pull", name]));
    let images = Crictl(&node).json(&["images", "-o", "json"]);
    assert_eq!(images["images"][0]["repoTags"][0], name);
    node.stop_and_account().await;
}
