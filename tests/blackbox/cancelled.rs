//! A client's deadline passes in the middle of a call: the work goes on or is undone, the same call again finds or
//! finishes the same object, and other names are judged by themselves. Who is in the middle is held there
//! (`cricket::sys::crash`).

use std::time::Duration;

use cricket::proto::cri;
use cricket::sys::crash::Point;
use tonic::{Code, Status};

use crate::node::{Node, Registry, container, create_request, eventually, pod, processes_with};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// The demo image on the test's registry.
const ON_REGISTRY: &str = "cancelled/demo:1";

/// Makes the call and drops it once it is held at the point.
async fn cancel_at<T>(node: &Node, point: Point, call: impl Future<Output = Result<T, Status>>) {
    node.arm(point, "hold", 1);
    tokio::select! {
        _ = call => panic!("nobody was held at {}", point.name()),
        () = node.until_held() => {}
    }
}

async fn run(node: &Node, config: &cri::PodSandboxConfig) -> Result<String, Status> {
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    node.runtime().await.run_pod_sandbox(request).await.map(|answer| answer.into_inner().pod_sandbox_id)
}

async fn pods(node: &Node) -> Vec<String> {
    let request = cri::ListPodSandboxRequest::default();
    let answer = node.runtime().await.list_pod_sandbox(request).await.expect("ListPodSandbox");
    answer.into_inner().items.into_iter().map(|pod| pod.id).collect()
}

#[tokio::test]
async fn a_pod_whose_caller_gave_up_is_found_by_the_same_call_and_by_no_other() {
    let node = Node::start_with_crash_points().await;
    let config = pod(&node, "given-up");
    for point in [Point::PodDirectories, Point::PodSpawned, Point::PodRecorded, Point::PodAnswered] {
        cancel_at(&node, point, run(&node, &config)).await;
        // Another attempt and another uid are other pods.
        let (mut attempt, mut uid) = (config.clone(), config.clone());
        attempt.metadata.as_mut().expect("pod() sets it").attempt = 1;
        uid.metadata.as_mut().expect("pod() sets it").uid.push('x');
        let others = [run(&node, &attempt).await.expect("an attempt"), run(&node, &uid).await.expect("a uid")];
        node.release();
        let id = run(&node, &config).await.expect("the same call finds or finishes it");
        let mut expected = vec![id.clone(), others[0].clone(), others[1].clone()];
        let mut listed = pods(&node).await;
        expected.sort();
        listed.sort();
        assert_eq!(listed, expected, "{}", point.name());
        let taken = run(&node, &config).await.expect_err("it was answered, so its name is taken");
        assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
        for id in listed {
            node.remove_pod(&id).await;
        }
    }
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_container_whose_caller_gave_up_is_made_and_started_once() {
    let node = Node::start_with_crash_points().await;
    node.load_demo().await;
    let pod_config = pod(&node, "given-up-container");
    let pod_id = node.run_pod(&pod_config).await;
    let points = [Point::ContainerSnapshot, Point::ContainerMade, Point::ContainerRecorded, Point::ContainerAnswered];
    for (number, point) in points.into_iter().enumerate() {
        let name = format!("given-up-{number}");
        let request = create_request(&pod_id, container(&name, &["demo", "sleep", "inf", &name]), &pod_config);
        let create = async || node.runtime().await.create_container(request.clone()).await;
        cancel_at(&node, point, create()).await;
        let mut attempt = request.clone();
        attempt.config.as_mut().and_then(|config| config.metadata.as_mut()).expect("container() sets it").attempt = 1;
        let other = node.runtime().await.create_container(attempt).await.expect("an attempt").into_inner().container_id;
        node.release();
        let id = create().await.expect("the same call finds or finishes it").into_inner().container_id;
        assert_ne!(id, other, "another attempt is another container");
        let taken = create().await.expect_err("it was answered, so its name is taken");
        assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");

        let request = cri::StartContainerRequest { container_id: id.clone() };
        let start = async || node.runtime().await.start_container(request.clone()).await;
        cancel_at(&node, Point::ContainerStarted, start()).await;
        let (again, ()) = tokio::join!(start(), async { node.release() });
        let code = again.as_ref().err().map(Status::code);
        assert!(matches!(code, None | Some(Code::FailedPrecondition)), "{again:?}");
        assert_eq!(node.container_status(&id).await.state(), cri::ContainerState::ContainerRunning);
        eventually("it runs", || (processes_with(&name).len() == 1).then_some(())).await;
    }
    node.remove_pod(&pod_id).await;
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_stop_whose_caller_gave_up_ends_what_was_meant_and_no_more() {
    let node = Node::start_with_crash_points().await;
    node.load("busybox");
    let pod_config = pod(&node, "given-up-stop");
    let pod_id = node.run_pod(&pod_config).await;
    // It ends when told by a signal, after it was told to by a file.
    let script = |name: &str| {
        format!(
            "trap 'while [ ! -e /go ]; do sleep 0.05; done; exit 7' TERM; echo {name}; while :; do sleep 0.05; done"
        )
    };
    let mut ids = Vec::new();
    for name in ["told", "other"] {
        let mut config = container(name, &["sh", "-c", &script(name)]);
        config.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
        ids.push(node.start_container(&pod_id, config, &pod_config).await);
        let log = node.log_of("given-up-stop", name);
        eventually("it traps", || std::fs::read_to_string(&log).ok().filter(|text| text.contains(name))).await;
    }
    let stop = async |timeout: i64| {
        let request = cri::StopContainerRequest { container_id: ids[0].clone(), timeout };
        node.runtime().await.stop_container(request).await
    };
    cancel_at(&node, Point::StopSignalled, stop(60)).await;
    node.release();
    // Its grace is not cut short, neither by the caller's end nor by a second call with as much.
    assert!(tokio::time::timeout(Duration::from_millis(500), stop(60)).await.is_err());
    assert_eq!(node.container_status(&ids[0]).await.state(), cri::ContainerState::ContainerRunning);
    node.exec(&ids[0], &["touch", "/go"], 10).await.expect("it runs still");
    stop(60).await.expect("the same call joins it");
    assert_eq!(node.exit_of(&ids[0]).await.exit_code, 7, "it ended by itself");
    assert_eq!(node.container_status(&ids[1]).await.state(), cri::ContainerState::ContainerRunning);
    node.remove_pod(&pod_id).await;
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_command_whose_caller_gave_up_is_ended() {
    let node = Node::start_with_crash_points().await;
    node.load_demo().await;
    let pod_config = pod(&node, "given-up-exec");
    let pod_id = node.run_pod(&pod_config).await;
    let id = node.start_container(&pod_id, container("main", &["demo", "sleep", "inf", "main"]), &pod_config).await;
    let call = node.exec(&id, &["demo", "sleep", "inf", "abandoned"], 0);
    tokio::select! {
        answer = call => panic!("it ended: {answer:?}"),
        _ = eventually("the command runs", || processes_with("abandoned").first().copied()) => {}
    }
    eventually("the command is ended", || processes_with("abandoned").is_empty().then_some(())).await;
    // Before the supervisor's answer is read, too.
    cancel_at(&node, Point::ExecBegun, node.exec(&id, &["demo", "sleep", "inf", "abandoned"], 0)).await;
    node.release();
    eventually("the command is ended", || processes_with("abandoned").is_empty().then_some(())).await;
    assert_eq!(node.container_status(&id).await.state(), cri::ContainerState::ContainerRunning);
    node.remove_pod(&pod_id).await;
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_pull_whose_caller_gave_up_leaves_a_whole_store() {
    let mut node = Node::prepare().await;
    node.use_crash_points();
    let registry = Registry::start(&node).await;
    let archive = node.dir.join("demo.tar");
    std::fs::write(&archive, cricket::demo::ARCHIVE).expect("a file of ours");
    let name = registry.push_archive(&archive, ON_REGISTRY);
    let node = node.begin().await;
    let image = Some(cri::ImageSpec { image: name.clone(), ..Default::default() });
    let pull = async || {
        let request = cri::PullImageRequest { image: image.clone(), ..Default::default() };
        node.images().await.pull_image(request).await
    };
    for point in [Point::LayerUnpacked, Point::LayerInPlace, Point::ImageConfig, Point::ImageRecorded] {
        cancel_at(&node, point, pull()).await;
        let (again, ()) = tokio::join!(pull(), async { node.release() });
        again.expect("the same call again");
        let listed = node.images().await.list_images(cri::ListImagesRequest::default()).await.expect("ListImages");
        assert_eq!(listed.into_inner().images.len(), 1, "{}", point.name());
        crate::node::succeed(&mut node.cricket(["image", "verify"]));
        crate::node::succeed(&mut node.cricket(["image", "remove", &name]));
    }
    node.stop_and_account().await;
}
