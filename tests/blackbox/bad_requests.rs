//! Requests that are wrong: the right gRPC code, a message that names the thing, nothing left behind.

use cricket::proto::cri;
use tonic::{Code, Status};

use crate::node::{Node, container, create_request, pod};

/// An id of the right form that nobody has.
const NOBODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// What a client's HTTP/2 takes as a header, with room for the rest of it.
const MESSAGE_BYTES_MAX: usize = 4096;

#[track_caller]
fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>, codes: &[Code], named: &str) {
    let status = answer.expect_err(what);
    assert!(codes.contains(&status.code()), "{what}: {status}");
    assert!(status.message().contains(named), "{what}: the message does not name {named:?}: {status}");
    assert!(status.message().len() <= MESSAGE_BYTES_MAX, "{what}: {} bytes", status.message().len());
}

#[tokio::test]
async fn unknown_ids_are_not_found_or_already_gone() {
    let node = Node::start().await;
    let mut runtime = node.runtime().await;
    let pod_sandbox_id = NOBODY.to_owned();
    let container_id = NOBODY.to_owned();
    let not_found = &[Code::NotFound];

    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod_sandbox_id.clone(), verbose: false };
    refused("PodSandboxStatus", runtime.pod_sandbox_status(request).await, not_found, NOBODY);
    let request = cri::ContainerStatusRequest { container_id: container_id.clone(), verbose: false };
    refused("ContainerStatus", runtime.container_status(request).await, not_found, NOBODY);
    let request = cri::StartContainerRequest { container_id: container_id.clone() };
    refused("StartContainer", runtime.start_container(request).await, not_found, NOBODY);
    refused("ExecSync", node.exec(NOBODY, &["true"], 1).await, not_found, NOBODY);
    let request = cri::ReopenContainerLogRequest { container_id: container_id.clone() };
    refused("ReopenContainerLog", runtime.reopen_container_log(request).await, not_found, NOBODY);
    let request = create_request(NOBODY, container("main", &["demo"]), &pod(&node, "nobody"));
    refused("CreateContainer", runtime.create_container(request).await, not_found, NOBODY);

    runtime
        .stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() })
        .await
        .expect("gone");
    runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await.expect("gone");
    let stop = cri::StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
    runtime.stop_container(stop).await.expect("gone");
    runtime.remove_container(cri::RemoveContainerRequest { container_id }).await.expect("gone");
    node.stop_and_account().await;
}

#[tokio::test]
async fn an_empty_or_short_id_matches_nothing() {
    let node = Node::start().await;
    let config = pod(&node, "bystander");
    let bystander = node.run_pod(&config).await;
    let mut runtime = node.runtime().await;
    for id in ["", &bystander[..1], &bystander[..2]] {
        let codes = &[Code::InvalidArgument, Code::NotFound];
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        refused("PodSandboxStatus", runtime.pod_sandbox_status(request).await, codes, "");
        let _ = runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await;
        let _ = runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await;
    }
    assert_eq!(node.pod_status(&bystander).await.state(), cri::PodSandboxState::SandboxReady);
    assert_eq!(node.pod_status(&bystander[..12]).await.id, bystander, "a unique prefix will do");
    node.remove_pod(&bystander).await;
    node.stop_and_account().await;
}

#[tokio::test]
async fn malformed_pods_are_refused() {
    let node = Node::start().await;
    let mut runtime = node.runtime().await;
    let invalid = &[Code::InvalidArgument];
    let good = pod(&node, "malformed");
    let without = |change: fn(&mut cri::PodSandboxMetadata)| {
        let mut config = good.clone();
        change(config.metadata.as_mut().expect("pod() sets it"));
        Some(config)
    };
    for (what, config) in [
        ("no config", None),
        ("no metadata", Some(cri::PodSandboxConfig { metadata: None, ..good.clone() })),
        ("no name", without(|metadata| metadata.name.clear())),
        ("no namespace", without(|metadata| metadata.namespace.clear())),
        ("no uid", without(|metadata| metadata.uid.clear())),
        (
            "a limit that is none",
            Some(cri::PodSandboxConfig {
                linux: Some(cri::LinuxPodSandboxConfig {
                    resources: Some(cri::LinuxContainerResources {
                        unified: [("../memory.max".to_owned(), "1".to_owned())].into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..good.clone()
            }),
        ),
        (
            "a log directory that is not absolute",
            Some(cri::PodSandboxConfig { log_directory: "logs/../..".to_owned(), ..good.clone() }),
        ),
    ] {
        let request = cri::RunPodSandboxRequest { config, ..Default::default() };
        refused(what, runtime.run_pod_sandbox(request).await, invalid, "");
    }
    let request =
        cri::RunPodSandboxRequest { config: Some(good.clone()), runtime_handler: "no-such-handler".to_owned() };
    let codes = &[Code::InvalidArgument, Code::NotFound, Code::FailedPrecondition];
    refused("an unknown handler", runtime.run_pod_sandbox(request).await, codes, "no-such-handler");
    let pods = runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.expect("listed").into_inner();
    assert_eq!(pods.items, [], "no refused pod is listed");
    node.stop_and_account().await;
}

#[tokio::test]
async fn malformed_containers_are_refused() {
    let node = Node::start().await;
    node.load_demo().await;
    let mut runtime = node.runtime().await;
    let pod_config = pod(&node, "host");
    let pod = node.run_pod(&pod_config).await;
    let good = || container("main", &["demo"]);
    let mounting = |host_path: &str, container_path: &str| cri::ContainerConfig {
        mounts: vec![cri::Mount {
            host_path: host_path.to_owned(),
            container_path: container_path.to_owned(),
            ..Default::default()
        }],
        ..good()
    };
    let imaged = |image: &str| cri::ContainerConfig {
        image: Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() }),
        ..good()
    };
    use Code::{FailedPrecondition, InvalidArgument, NotFound, Unknown};
    for (what, config, codes, named) in [
        ("no metadata", cri::ContainerConfig { metadata: None, ..good() }, &[InvalidArgument][..], ""),
        ("no image", cri::ContainerConfig { image: None, ..good() }, &[InvalidArgument], "image"),
        ("an empty image name", imaged(""), &[InvalidArgument], "image"),
        ("an unknown image", imaged("nowhere.local/none:1"), &[NotFound], "nowhere.local/none:1"),
        (
            "a log path outside",
            cri::ContainerConfig { log_path: "../../escape.log".to_owned(), ..good() },
            &[InvalidArgument],
            "escape.log",
        ),
        (
            "a mount of nothing",
            mounting("/no/such/source", "/volume"),
            &[InvalidArgument, NotFound, FailedPrecondition, Unknown],
            "/no/such/source",
        ),
        ("a mount to nowhere", mounting("/tmp", ""), &[InvalidArgument], ""),
    ] {
        // A bad source may be found when the container is created or when it is started.
        let answer = match runtime.create_container(create_request(&pod, config, &pod_config)).await {
            Err(status) => Err(status),
            Ok(created) => {
                let container_id = created.into_inner().container_id;
                let answer = runtime.start_container(cri::StartContainerRequest { container_id: container_id.clone() });
                let answer = answer.await.map(|_| ());
                runtime.remove_container(cri::RemoveContainerRequest { container_id }).await.expect("removed");
                answer
            }
        };
        refused(what, answer, codes, named);
    }
    assert!(!node.dir.join("escape.log").exists(), "nothing is written outside");
    let left = runtime.list_containers(cri::ListContainersRequest::default()).await.expect("listed").into_inner();
    assert_eq!(left.containers, [], "no refused container is listed");
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_missing_executable_is_named_and_leaves_the_pod_well() {
    let node = Node::start().await;
    node.load_demo().await;
    let mut runtime = node.runtime().await;
    let config = pod(&node, "missing");
    let pod = node.run_pod(&config).await;
    // It may be missed when the container is created or when it is started.
    let request = create_request(&pod, container("main", &["/bin/not-here"]), &config);
    let status = match runtime.create_container(request).await {
        Err(status) => status,
        Ok(created) => {
            let container_id = created.into_inner().container_id;
            let start = cri::StartContainerRequest { container_id: container_id.clone() };
            let status = runtime.start_container(start).await.expect_err("there is no such program");
            let exited = node.exit_of(&container_id).await;
            assert!(exited.exit_code != 0 && !exited.reason.is_empty(), "{exited:?}");
            status
        }
    };
    assert!(status.message().contains("not-here"), "{status}");

    let good = node.start_container(&pod, container("good", &["demo", "sleep", "inf"]), &config).await;
    let answer = node.exec(&good, &["/bin/not-here-either"], 5).await;
    match answer {
        Err(status) => assert!(status.message().contains("not-here-either"), "{status}"),
        Ok(answer) => assert!(matches!(answer.exit_code, 126 | 127), "{answer:?}"),
    }
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}

/// What only the kernel finds impossible is told by the thing that the request named, not by the stage it came to.
#[tokio::test]
async fn what_the_kernel_refuses_is_named() {
    let node = Node::start().await;
    node.load_demo().await;
    let mut runtime = node.runtime().await;
    let config = pod(&node, "impossible");
    let pod_id = node.run_pod(&config).await;
    let profile = node.dir.join("nothing.json");
    std::fs::write(&profile, r#"{"defaultAction":"SCMP_ACT_ERRNO"}"#).expect("a profile");
    let security = |change: &dyn Fn(&mut cri::LinuxContainerSecurityContext)| {
        let mut config = container("main", &["demo"]);
        change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
        config
    };
    let directory = cri::ContainerConfig { working_dir: "/proc/self/fd/9".to_owned(), ..container("main", &["demo"]) };
    let user = security(&|security| security.run_as_user = Some(cri::Int64Value { value: (1 << 31) - 1 }));
    let seccomp = security(&|security| {
        security.seccomp = Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::Localhost.into(),
            localhost_ref: profile.to_str().expect("a text").to_owned(),
        });
    });
    for (what, config_of_it, named) in
        [("directory", directory, "/proc/self/fd/9"), ("user", user, "2147483647"), ("seccomp", seccomp, "seccomp")]
    {
        let answer = runtime.create_container(create_request(&pod_id, config_of_it, &config)).await;
        refused(what, answer, &[Code::FailedPrecondition], named);
    }
    node.remove_pod(&pod_id).await;

    let mut config = pod(&node, "sysctl");
    let linux = config.linux.get_or_insert_default();
    linux.sysctls = [("kernel.shm_rmid_forced".to_owned(), "7".to_owned())].into();
    let answer =
        runtime.run_pod_sandbox(cri::RunPodSandboxRequest { config: Some(config), ..Default::default() }).await;
    refused("sysctl", answer, &[Code::InvalidArgument], "kernel.shm_rmid_forced");
    node.stop_and_account().await;
}

#[tokio::test]
async fn bad_image_names_are_refused() {
    let node = Node::start().await;
    let mut images = node.images().await;
    for name in ["", "nowhere.local/UPPER/case", "a b", "/etc/passwd", "../up:1", "name:tag:tag", "name@sha256:1234"] {
        let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
        let request = cri::PullImageRequest { image: image.clone(), ..Default::default() };
        refused(name, images.pull_image(request).await, &[Code::InvalidArgument], "");
    }
    let image = Some(cri::ImageSpec { image: "nowhere.local/none:1".to_owned(), ..Default::default() });
    let request = cri::ImageStatusRequest { image: image.clone(), verbose: false };
    assert!(images.image_status(request).await.expect("no error").into_inner().image.is_none());
    images.remove_image(cri::RemoveImageRequest { image }).await.expect("gone already");
    let request = cri::PullImageRequest {
        image: Some(cri::ImageSpec { image: "127.0.0.1:1/none:1".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let codes = &[Code::Unavailable, Code::Unknown, Code::NotFound];
    refused("a registry that is not there", images.pull_image(request).await, codes, "127.0.0.1:1");
    node.stop_and_account().await;
}

#[tokio::test]
async fn the_longest_grace_there_is_stops_a_container_and_breaks_nothing() {
    let node = Node::start().await;
    node.load_demo().await;
    let config = pod(&node, "patient");
    let pod = node.run_pod(&config).await;
    let id = node.start_container(&pod, container("main", &["demo", "sleep", "inf"]), &config).await;
    let answer = node.exec(&id, &["demo", "id"], i64::MAX).await.expect("ExecSync");
    assert_eq!(answer.exit_code, 0);
    let stop = cri::StopContainerRequest { container_id: id.clone(), timeout: i64::MAX };
    node.runtime().await.stop_container(stop).await.expect("StopContainer");
    assert_eq!(node.container_status(&id).await.state(), cri::ContainerState::ContainerExited);
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}
