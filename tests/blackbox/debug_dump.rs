//! What helps to find a fault: the archive of `cricket debug dump`, and the log's lines, each with its call.

use std::io::Read;

use cricket::proto::cri;
use cricket::sys::crash::Point;

use crate::node::{Node, container, fail, pod, succeed, text};

const SECRET: &str = "hunter2";

#[tokio::test]
async fn a_dump_tells_the_state_and_no_secret() {
    let node = Node::start().await;
    node.load_demo().await;
    let mut config = pod(&node, "dumped");
    config.annotations = [("last-applied".to_owned(), SECRET.to_owned())].into();
    let pod_id = node.run_pod(&config).await;
    let mut of_container = container("main", &["demo", "sleep", "inf", SECRET]);
    of_container.envs = vec![cri::KeyValue { key: "DATABASE".to_owned(), value: SECRET.into() }];
    let id = node.start_container(&pod_id, of_container, &config).await;
    let archive = node.dir.join("dump.tar.gz");
    succeed(node.cricket(["debug", "dump"]).arg(&archive));
    let said = fail(node.cricket(["debug", "dump"]).arg(&archive)).1;
    assert!(said.contains("dump.tar.gz"), "what is there is not overwritten: {said}");

    let file = std::fs::File::open(&archive).expect("an archive");
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let mut files = std::collections::BTreeMap::new();
    for entry in tar.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a name").display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("its bytes");
        files.insert(name, text(&bytes));
    }
    let of = |name: &str| files.get(&format!("cricket-debug/{name}")).unwrap_or_else(|| panic!("no {name}: {files:?}"));
    let record = of(&format!("root/pods/{pod_id}/containers/{id}/container.json"));
    assert!(record.contains("DATABASE") && record.contains("(redacted)"), "{record}");
    assert!(of(&format!("root/pods/{pod_id}/pod.json")).contains("dumped"));
    assert!(of("version.txt").contains(env!("CARGO_PKG_VERSION")));
    assert!(of("status.json").contains("RuntimeReady"));
    assert!(of("files.txt").contains("supervisor.sock"));
    for name in ["check.json", "node.json", "mounts.txt", "containers.json"] {
        assert!(!of(name).is_empty(), "{name}");
    }
    let told: Vec<_> = files.iter().filter(|(_, text)| text.contains(SECRET)).collect();
    assert!(told.is_empty(), "{told:?}");
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_panic_is_one_failed_call_and_a_line_with_the_call_the_pod_and_the_container() {
    let node = Node::start_with_crash_points().await;
    node.load_demo().await;
    let config = pod(&node, "panics");
    let pod_id = node.run_pod(&config).await;
    node.arm(Point::ContainerMade, "panic", 1);
    let request = crate::node::create_request(&pod_id, container("main", &["demo", "sleep", "inf"]), &config);
    let error = node.runtime().await.create_container(request.clone()).await.expect_err("a panic");
    assert_eq!(error.code(), tonic::Code::Internal);
    assert!(error.message().contains("container main of pod default/panics"), "{error}");
    let log = text(&std::fs::read(node.daemon_log()).expect("a log"));
    let line = |what: &str| log.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what}:\n{log}"));
    let (panic, answer) = (line("panic: at container.made"), line("container main of pod default/panics"));
    let call = |line: &str| Some(line.split_once("call{id=")?.1.split_once('}')?.0.to_owned());
    assert!(call(panic).is_some_and(|call| call.contains("create_container")), "{panic}");
    assert_eq!(call(panic), call(answer));
    node.runtime().await.create_container(request).await.expect("the next call is another");
    node.stop_and_account().await;
}
