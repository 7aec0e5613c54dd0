//! The pod that the kubelet is given: an init container, a server with every probe and hook, one that crashes, one that
//! writes a log to be rotated, one that listens to its input.

use serde_json::{Value, json};

use super::kubelet::HOST;
use crate::node::Node;

/// Its name, with the kubelet's own part.
pub const POD: &str = "web-standalone";
pub const SERVER: &str = "server";
pub const CRASHER: &str = "crasher";
pub const WRITER: &str = "writer";
pub const TALKER: &str = "talker";
/// The pod that has users of its own, and its container.
pub const USERS_POD: &str = "users-standalone";
pub const USERS: &str = "users";
/// How many a kubelet gives it.
pub const USERS_OF_POD: u64 = 65_536;
/// What the server answers; the init container wrote it.
pub const PAGE: &str = "written by the init container";

/// Of a pod with limits.
pub const IDLE: &str = "idle";
pub const GREEDY: &str = "greedy";
pub const LIMIT_CPU: &str = "200m";

const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// The whole manifest.
pub fn pod(node: &Node) -> Value {
    assert_eq!(POD, format!("web-{HOST}"));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "web", "namespace": "default", "labels": { "app": "web" } },
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "initContainers": [shell("init", &format!("echo {PAGE} > /work/index.html"))],
            "containers": [
                server(),
                shell(CRASHER, "echo about to crash; exit 3"),
                shell(WRITER, "i=0; while :; do i=$((i+1)); echo line $i; usleep 5000; done"),
                talker(),
            ],
            "volumes": [
                { "name": "work", "emptyDir": {} },
                { "name": "memory", "emptyDir": { "medium": "Memory" } },
                { "name": "shared", "hostPath": { "path": node.dir.join("shared"), "type": "Directory" } },
                { "name": "info", "downwardAPI": { "items": [
                    { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                ] } },
            ],
        },
    })
}

/// With users of its own.
pub fn users_pod() -> Value {
    assert_eq!(USERS_POD, format!("users-{HOST}"));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "users", "namespace": "default" },
        "spec": {
            "hostUsers": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": USERS,
                "image": IMAGE,
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", "touch /mine/file && stat -c %u:%g /mine/file >/mine/owner; sleep 600"],
                "volumeMounts": [{ "name": "mine", "mountPath": "/mine" }],
            }],
            "volumes": [{ "name": "mine", "emptyDir": {} }],
        },
    })
}

/// Two containers with limits: one idle, one that takes more memory than it may. Where `request_cpu` is less than the
/// limit the pod is burstable, else guaranteed.
pub fn limited_pod(request_cpu: &str) -> Value {
    let limited = |name: &str, script: &str| {
        json!({
            "name": name,
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "command": ["sh", "-c", script],
            "resources": {
                "requests": { "cpu": request_cpu, "memory": "64Mi" },
                "limits": { "cpu": LIMIT_CPU, "memory": "64Mi" },
            },
        })
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": format!("limited-{request_cpu}"), "namespace": "default" },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [limited(IDLE, "exec sleep 10000"), limited(GREEDY, "dd if=/dev/zero of=/dev/null bs=256M count=1")],
        },
    })
}

/// The numbers of the writer's lines in one file of its log.
pub fn numbers(log: &str) -> Vec<u64> {
    log.lines().filter_map(|line| line.rsplit_once("line ")?.1.parse().ok()).collect()
}

fn server() -> Value {
    let mut server = shell(SERVER, "httpd -f -p 8080 -h /work");
    server["startupProbe"] = json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1, "failureThreshold": 60 });
    server["readinessProbe"] = json!({ "httpGet": { "port": 8080, "path": "/index.html" }, "periodSeconds": 1 });
    server["livenessProbe"] = json!({ "exec": { "command": ["cat", "/memory/started"] }, "periodSeconds": 1 });
    server["lifecycle"] = json!({
        "postStart": { "exec": { "command": ["sh", "-c", "echo yes > /memory/started"] } },
        "preStop": { "exec": { "command": ["sh", "-c", "echo bye > /shared/farewell"] } },
    });
    server
}

fn talker() -> Value {
    let mut talker = shell(TALKER, "while read word; do echo you said $word; done");
    talker["stdin"] = json!(true);
    talker["stdinOnce"] = json!(true);
    talker
}

fn shell(name: &str, script: &str) -> Value {
    json!({
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
        "volumeMounts": [
            { "name": "work", "mountPath": "/work" },
            { "name": "memory", "mountPath": "/memory" },
            { "name": "shared", "mountPath": "/shared" },
            { "name": "info", "mountPath": "/info" },
        ],
    })
}
