//! What an administrator gives to containers: runtime handlers with hooks and limits, CDI devices; and what he sees of
//! the daemon: its own metrics.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use cricket::proto::cri;
use serde_json::json;

use crate::node::{Node, container, create_request, patience, pod};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// A node with a handler, a CDI device and metrics, and the address of these.
async fn node() -> (Node, SocketAddr) {
    let node = Node::prepare().await;
    let hook = json!({"path": "/bin/touch", "args": ["touch", node.dir.join("hooked")]});
    let base = json!({
        "hooks": {"createRuntime": [hook]},
        "process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 99}]},
    });
    write(&node.dir.join("base.json"), &base.to_string());
    let device = format!(
        "cdiVersion: 0.6.0\nkind: example.org/toy\ndevices:\n- name: one\n  containerEdits:\n    env: [\"TOY=one\"]\n\
         \x20   deviceNodes:\n    - path: /dev/toy\n      hostPath: /dev/null\n    mounts:\n    - hostPath: {}\n\
         \x20     containerPath: /toy.json\n      options: [ro]\n",
        node.dir.join("base.json").display()
    );
    std::fs::create_dir(node.dir.join("cdi")).expect("a directory of ours");
    write(&node.dir.join("cdi/toy.yaml"), &device);
    // Free a moment ago; whoever takes it meanwhile fails the test.
    let address = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let config = format!(
        "[runtimes.test-handler]\nbase_spec = {:?}\nseccomp = \"runtime/default\"\nlimits = {{ \"pids.max\" = \"64\" }}\n\
         [cdi]\nspec_dirs = [{:?}]\n[metrics]\naddress = \"{address}\"\n",
        node.dir.join("base.json"),
        node.dir.join("cdi"),
    );
    write(&node.config(), &config);
    let node = node.begin().await;
    node.load("busybox");
    (node, address)
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file of ours");
}

fn looker(script: &str) -> cri::ContainerConfig {
    let mut config = container("looker", &["sh", "-c", script]);
    config.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
    config
}

async fn run_handled(node: &Node, handler: &str) -> Result<String, tonic::Status> {
    let config = Some(pod(node, "handled"));
    let request = cri::RunPodSandboxRequest { config, runtime_handler: handler.to_owned() };
    Ok(node.runtime().await.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

#[tokio::test]
async fn a_handler_adds_hooks_and_limits_and_an_unknown_one_is_refused() {
    let (node, _) = node().await;
    let status = node.runtime().await.status(cri::StatusRequest::default()).await.expect("Status").into_inner();
    let names: Vec<_> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(names, ["", "cricket", "test-handler"]);
    let refused = run_handled(&node, "gvisor").await.expect_err("not configured");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("gvisor") && refused.message().contains("test-handler"), "{refused}");

    let pod_id = run_handled(&node, "test-handler").await.expect("RunPodSandbox");
    assert_eq!(node.pod_status(&pod_id).await.runtime_handler, "test-handler");
    let script = "ulimit -n; grep ^Seccomp: /proc/self/status";
    let id = node.start_container(&pod_id, looker(script), &pod(&node, "handled")).await;
    assert_eq!(node.exit_of(&id).await.exit_code, 0);
    let log = std::fs::read_to_string(node.log_of("handled", "looker")).expect("a log");
    assert!(log.contains(" 99\n") && log.contains("Seccomp:\t2\n"), "{log}");
    assert!(node.dir.join("hooked").exists(), "the hook ran");
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_cdi_device_brings_its_node_mount_and_variable() {
    let (node, metrics) = node().await;
    let config = pod(&node, "toys");
    let pod_id = node.run_pod(&config).await;
    let mut wish = looker("echo $TOY; test -c /dev/toy && echo node; grep -c NOFILE /toy.json");
    wish.cdi_devices = vec![cri::CdiDevice { name: "example.org/toy=one".to_owned() }];
    let id = node.start_container(&pod_id, wish.clone(), &config).await;
    assert_eq!(node.exit_of(&id).await.exit_code, 0);
    let log = std::fs::read_to_string(node.log_of("toys", "looker")).expect("a log");
    assert!(log.contains(" one\n") && log.contains(" node\n") && log.contains(" 1\n"), "{log}");

    wish.metadata = Some(cri::ContainerMetadata { name: "other".to_owned(), attempt: 0 });
    wish.cdi_devices = vec![cri::CdiDevice { name: "example.org/toy=two".to_owned() }];
    let request = create_request(&pod_id, wish, &config);
    let refused = node.runtime().await.create_container(request).await.expect_err("no such device");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("example.org/toy=two"), "{refused}");

    let page = get(metrics, "/metrics");
    for line in [
        "cricket_calls_total{method=\"create_container\",code=\"OK\"} 1",
        "cricket_calls_total{method=\"create_container\",code=\"FAILED_PRECONDITION\"} 1",
        "cricket_pods{state=\"ready\"} 1",
        "cricket_containers{state=\"exited\"} 1",
        "cricket_images 1",
    ] {
        assert!(page.contains(line), "{line} in\n{page}");
    }
    assert!(page.ends_with("# EOF\n") && get(metrics, "/").starts_with("HTTP/1.1 404"));
    node.stop_and_account().await;
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(patience())).expect("a socket of ours");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}
