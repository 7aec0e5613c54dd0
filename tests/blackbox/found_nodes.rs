//! A node in namespaces that somebody else made, with less in them than ours have.

use cricket::proto::cri;
use tonic::Code;

use crate::node::{Node, container, create_request, eventually_async, pod, text};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

async fn said(node: &Node, id: &str, script: &str) -> String {
    let answer = node.exec(id, &["sh", "-c", script], 20).await.expect("ExecSync");
    format!("{}{}", text(&answer.stdout), text(&answer.stderr))
}

/// A user namespace of one id, mapped without newgidmap: the kernel lets nobody in it change groups. And an /etc of the
/// test's own, since the host's belongs to all.
#[tokio::test]
async fn without_setgroups_containers_run_without_groups_and_follow_the_hosts_resolver() {
    let mut node = Node::prepare().await;
    let etc = node.dir.join("etc");
    std::fs::create_dir(&etc).expect("a directory of ours");
    let resolve_at = |server: &str| {
        std::fs::write(etc.join("new"), format!("nameserver {server}\n")).expect("a file of ours");
        std::fs::rename(etc.join("new"), etc.join("resolv.conf")).expect("renamed");
    };
    resolve_at("192.0.2.1");
    let prepare = format!("ip link set lo up && mount --bind {} /etc && exec \"$@\"", etc.display());
    let enter = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--", "sh", "-c", &prepare, "sh"];
    node.enter = enter.map(str::to_owned).to_vec();
    let node = node.begin().await;
    assert!(node.daemon_said().contains("setgroups is denied"), "{}", node.daemon_said());
    node.load("busybox");
    let pod_config = pod(&node, "found");
    let pod = node.run_pod(&pod_config).await;
    let shell = |name: &str, groups: &[i64]| {
        let mut config = container(name, &["sh", "-c", "sleep 600"]);
        config.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.supplemental_groups = groups.to_vec();
        config
    };
    let request = create_request(&pod, shell("asks", &[7]), &pod_config);
    let refused = node.runtime().await.create_container(request).await.expect_err("it cannot have the group");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("group 7") && refused.message().contains("setgroups"), "{refused}");

    let id = node.start_container(&pod, shell("main", &[]), &pod_config).await;
    assert_eq!(said(&node, &id, "id -u; id -g; cat /etc/resolv.conf").await, "0\n0\nnameserver 192.0.2.1\n");
    resolve_at("192.0.2.2");
    eventually_async("the pod has the host's new resolver", async || {
        said(&node, &id, "cat /etc/resolv.conf").await.contains("192.0.2.2").then_some(())
    })
    .await;
    node.remove_pod(&pod).await;
    node.terminate_and_account().await;
}
