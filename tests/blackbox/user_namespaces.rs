//! Pods with a user namespace of their own (`hostUsers: false`), as a kubelet asks for them.

use std::os::unix::fs::PermissionsExt;

use cricket::proto::cri;
use tonic::Code;

use crate::node::{Node, container, create_request, log_lines, pod, succeed, text};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// A kubelet's first range of a node's ids.
const FIRST: u32 = 65536;
const LENGTH: u32 = 65536;

fn mapping() -> Vec<cri::IdMapping> {
    vec![cri::IdMapping { container_id: 0, host_id: FIRST, length: LENGTH }]
}

fn options(pid: cri::NamespaceMode) -> cri::NamespaceOption {
    let mode = cri::NamespaceMode::Pod.into();
    let users = cri::UserNamespace { mode, uids: mapping(), gids: mapping() };
    cri::NamespaceOption { pid: pid.into(), userns_options: Some(users), ..Default::default() }
}

fn pod_of(node: &Node, name: &str, pid: cri::NamespaceMode) -> cri::PodSandboxConfig {
    let mut config = pod(node, name);
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options(pid));
    linux.sysctls.insert("kernel.shm_rmid_forced".to_owned(), "1".to_owned());
    config
}

fn shell(name: &str, pid: cri::NamespaceMode, script: &str) -> cri::ContainerConfig {
    let mut config = container(name, &["sh", "-c", script]);
    config.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options = Some(options(pid));
    // As a kubelet sends them.
    security.masked_paths = ["/proc/kcore", "/proc/keys", "/sys/firmware"].map(str::to_owned).into();
    security.readonly_paths = ["/proc/sys", "/proc/sysrq-trigger"].map(str::to_owned).into();
    let profile_type = cri::security_profile::ProfileType::RuntimeDefault.into();
    security.seccomp = Some(cri::SecurityProfile { profile_type, ..Default::default() });
    config
}

/// The ids that the node has from 0 on, as its own processes see them.
pub fn ids_of(node: &Node) -> u64 {
    let table = text(&succeed(&mut node.enter()(&["cat", "/proc/self/uid_map"])).stdout);
    table.lines().map(|line| line.split_whitespace().last().and_then(|n| n.parse::<u64>().ok()).expect("a count")).sum()
}

async fn advertised(node: &Node) -> bool {
    let status = node.runtime().await.status(cri::StatusRequest::default()).await.expect("a status").into_inner();
    status.runtime_handlers.iter().all(|handler| handler.features.is_some_and(|features| features.user_namespaces))
}

fn directory(node: &Node, name: &str, mode: u32) -> cri::Mount {
    let path = node.logs().join(name);
    std::fs::create_dir_all(&path).expect("a directory");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("its mode");
    cri::Mount {
        container_path: "/volume".to_owned(),
        host_path: path.to_str().expect("a text").to_owned(),
        uid_mappings: mapping(),
        gid_mappings: mapping(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_pod_has_users_of_its_own_where_the_node_has_the_ids() {
    let node = Node::start().await;
    let has = ids_of(&node);
    let enough = has >= u64::from(FIRST + LENGTH);
    assert_eq!(advertised(&node).await, enough, "what is advertised is what works, with {has} ids");
    if enough {
        node.load("busybox");
        for pid in [cri::NamespaceMode::Container, cri::NamespaceMode::Pod] {
            is_right_inside(&node, pid).await;
        }
        succeed(node.cricket(["image", "remove"]).arg(BUSYBOX));
    } else {
        let config = Some(pod_of(&node, "refused", cri::NamespaceMode::Container));
        let request = cri::RunPodSandboxRequest { config, ..Default::default() };
        let refused = node.runtime().await.run_pod_sandbox(request).await.expect_err("too few ids");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let missing = u64::from(FIRST + LENGTH) - has;
        for part in ["65536 to 131071", &format!("has {has} user ids"), &format!("{missing} are missing")] {
            assert!(refused.message().contains(part), "{part}: {refused}");
        }
    }
    node.stop_and_account().await;
}

/// Container, exec, image, the pod's files, volumes.
async fn is_right_inside(node: &Node, pid: cri::NamespaceMode) {
    let name = format!("own-{}", pid.as_str_name().to_lowercase());
    let config = pod_of(node, &name, pid);
    let id = node.run_pod(&config).await;
    let script = "id -u; stat -c '%u:%g' / /bin/busybox /etc/hostname /dev/shm /made/here /proc/1; touch /new /volume/new && \
                  stat -c %u /new /volume/new; cat /proc/sys/kernel/shm_rmid_forced; echo x >/dev/stdout; sleep 1000";
    let mut main = shell("main", pid, script);
    main.working_dir = "/made/here".to_owned();
    main.mounts = vec![directory(node, "for-everybody", 0o777)];
    let main = node.start_container(&id, main, &config).await;
    let log = node.log_of(&name, "main");
    let lines = crate::node::eventually("the container's output", || {
        let lines: Vec<String> = log_lines(&log).into_iter().map(|line| line.content).collect();
        lines.iter().any(|line| line == "x").then_some(lines)
    })
    .await;
    assert_eq!(lines, ["0", "0:0", "0:0", "0:0", "0:0", "0:0", "0:0", "0", "0", "1", "x"], "{pid:?}");

    let script = "sed 's/  */ /g' /proc/self/uid_map /proc/self/gid_map; \
                  touch /made/here/x && chown 7:8 /made/here/x && stat -c %u:%g /made/here/x; grep Seccomp: /proc/self/status | tr -d '\\t'";
    let seen = node.exec(&main, &["sh", "-c", script], 10).await.expect("an exec");
    let seen = text(&seen.stdout);
    let (maps, rest): (Vec<&str>, Vec<&str>) = seen.lines().partition(|line| line.starts_with(' '));
    let mapped: u32 = maps.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).sum();
    assert_eq!((mapped, rest), (2 * LENGTH, vec!["7:8", "Seccomp:2"]), "{pid:?}: {seen}");
    let bridge = node.exec_in_node("ip -o link show type bridge | grep -o 'cricket[^:]*' | head -1");
    assert_eq!(remove_of_node(node, &main, bridge.trim()).await, libc::EACCES.to_string(), "{pid:?}: {bridge}");

    let outside = node.container_status(&main).await;
    assert_eq!(outside.user.and_then(|user| user.linux).map(|user| user.uid), Some(0));

    let mut closed = shell("closed", pid, "true");
    closed.mounts = vec![directory(node, "for-nobody", 0o700)];
    let made = node.runtime().await.create_container(create_request(&id, closed, &config)).await;
    // Only root may show the files of a disk with other owners; these tests run as an ordinary user.
    let refused = made.expect_err("it would be nobody's");
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("chown 65536:65536"), "{refused}");

    let mut stranger = shell("stranger", pid, "true");
    let security = stranger.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.run_as_user = Some(cri::Int64Value { value: i64::from(LENGTH) });
    let refused = node.runtime().await.create_container(create_request(&id, stranger, &config)).await;
    assert!(refused.expect_err("no such user").message().contains("65536"));
    node.remove_pod(&id).await;
}

/// The kernel's answer to root of the container's namespaces, with all capabilities there, who reaches for an interface
/// of the node's.
async fn remove_of_node(node: &Node, container: &str, interface: &str) -> String {
    let request = cri::ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let status = node.runtime().await.container_status(request).await.expect("a status").into_inner();
    let info: serde_json::Value = serde_json::from_str(status.info.get("info").expect("details")).expect("a document");
    let target = info["pid"].to_string();
    let script = include_str!("../inside/remove_of_peer.pl");
    let namespaces = ["nsenter", "--target", &target, "--user", "--net", "--"];
    let command = [&namespaces[..], &["perl", "-e", script, interface]].concat();
    text(&succeed(&mut node.enter()(&command)).stdout).trim().to_owned()
}
