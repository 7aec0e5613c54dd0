//! Options of pods and containers that Kubernetes' own tests do not look at, seen from inside.

use cricket::proto::cri;
use tonic::Code;

use crate::node::{Node, container, create_request, eventually, log_lines, pod, succeed};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

fn shell(name: &str, script: &str) -> cri::ContainerConfig {
    let mut config = container(name, &["sh", "-c", script]);
    config.image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
    config
}

fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// A pod in which containers are run one after the other.
struct Bench {
    node: Node,
    config: cri::PodSandboxConfig,
    pod: String,
}

impl Bench {
    async fn set_up() -> Self {
        let node = Node::start().await;
        node.load("busybox");
        let config = pod(&node, "bench");
        let pod = node.run_pod(&config).await;
        Self { node, config, pod }
    }

    /// Runs it to its end and answers what it wrote.
    async fn output(&self, name: &str, config: cri::ContainerConfig) -> Vec<String> {
        let id = self.node.start_container(&self.pod, config, &self.config).await;
        self.node.exit_of(&id).await;
        log_lines(&self.node.log_of("bench", name)).into_iter().map(|line| line.content).collect()
    }

    async fn refusal(&self, config: cri::ContainerConfig) -> tonic::Status {
        let request = create_request(&self.pod, config, &self.config);
        self.node.runtime().await.create_container(request).await.expect_err("it is refused")
    }

    async fn put_away(self) {
        self.node.remove_pod(&self.pod).await;
        succeed(self.node.cricket(["image", "remove"]).arg(BUSYBOX));
        self.node.stop_and_account().await;
    }
}

#[tokio::test]
async fn identity_and_limits_are_those_that_were_asked_for() {
    let bench = Bench::set_up().await;

    let mut config = shell("ambient", "grep -E 'Cap(Amb|Eff|Inh)' /proc/self/status");
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
    let capabilities = cri::Capability {
        drop_capabilities: vec!["ALL".to_owned()],
        add_ambient_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
        ..Default::default()
    };
    security(&mut config).capabilities = Some(capabilities);
    let lines = bench.output("ambient", config).await;
    assert!(lines.len() == 3 && lines.iter().all(|line| line.ends_with("0000000000000400")), "{lines:?}");

    for (name, asked) in [("score-1000", 1000), ("score-500", 500), ("score-low", -1000)] {
        let mut config = shell(name, "cat /proc/self/oom_score_adj");
        let resources = cri::LinuxContainerResources { oom_score_adj: asked, ..Default::default() };
        config.linux.get_or_insert_default().resources = Some(resources);
        let lines = bench.output(name, config).await;
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").expect("procfs");
        // An ordinary user lowers nothing: what is asked for is clamped to what it may have.
        assert_eq!(lines, [if asked > 0 { asked.to_string() } else { own.trim().to_owned() }], "{name}");
    }

    let mut config = shell("apparmor", "true");
    let mut profile = cri::SecurityProfile { localhost_ref: "cricket-test".to_owned(), ..Default::default() };
    profile.set_profile_type(cri::security_profile::ProfileType::Localhost);
    security(&mut config).apparmor = Some(profile);
    let refused = bench.refusal(config).await;
    assert!(refused.message().contains("AppArmor"), "{refused}");
    bench.put_away().await;
}

/// This host may have it; what is asked for is never passed over.
#[tokio::test]
async fn what_is_asked_of_selinux_is_refused_by_name() {
    let bench = Bench::set_up().await;
    let options = || Some(cri::SeLinuxOption { level: "s0:c1,c2".to_owned(), ..Default::default() });
    let mut config = shell("labelled", "true");
    security(&mut config).selinux_options = options();
    let of_container = bench.refusal(config).await;
    let mut config = pod(&bench.node, "labelled");
    config.linux.get_or_insert_default().security_context.get_or_insert_default().selinux_options = options();
    let request = cri::RunPodSandboxRequest { config: Some(config), ..Default::default() };
    let of_pod = bench.node.runtime().await.run_pod_sandbox(request).await.expect_err("it is refused");
    for refused in [of_container, of_pod] {
        assert!(matches!(refused.code(), Code::FailedPrecondition | Code::Unimplemented), "{refused}");
        assert!(refused.message().contains("SELinux"), "{refused}");
    }
    let mut config = shell("unlabelled", "echo ran");
    security(&mut config).selinux_options = Some(cri::SeLinuxOption::default());
    assert_eq!(bench.output("unlabelled", config).await, ["ran"], "what a kubelet sends when nobody asks");
    bench.put_away().await;
}

#[tokio::test]
async fn who_a_container_is_and_where_is_seen_inside_and_told_in_its_status() {
    let bench = Bench::set_up().await;
    let mut config = shell(
        "who",
        "id -u; id -g; id -G; cat /etc/hostname; hostname; grep -c localhost /etc/hosts; \
         touch /etc/hosts 2>/dev/null && echo written; sleep 600",
    );
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
    security(&mut config).run_as_group = Some(cri::Int64Value { value: 2000 });
    security(&mut config).supplemental_groups = vec![3000];
    let id = bench.node.start_container(&bench.pod, config, &bench.config).await;
    let log = bench.node.log_of("bench", "who");
    let lines = eventually("its words", || {
        let lines: Vec<String> = log_lines(&log).into_iter().map(|line| line.content).collect();
        (lines.len() >= 6).then_some(lines)
    })
    .await;
    assert_eq!(lines[..3], ["1000", "2000", "2000 3000"], "{lines:?}");
    // The pod is on the node's network, so it has the node's name.
    assert!(lines[3] == lines[4] && !lines[3].is_empty() && lines[5] != "0", "{lines:?}");
    assert_eq!(lines.len(), 6, "another user's file: {lines:?}");
    let user = bench.node.container_status(&id).await.user.and_then(|user| user.linux).expect("told");
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 2000, vec![2000, 3000]));
    bench.put_away().await;
}

#[tokio::test]
async fn containers_of_a_pod_share_memory_and_devices_can_have_other_names() {
    let bench = Bench::set_up().await;
    bench.output("writer", shell("writer", "echo shared >/dev/shm/file")).await;
    assert_eq!(bench.output("reader", shell("reader", "cat /dev/shm/file")).await, ["shared"]);

    let mut config =
        shell("device", "head -c 3 /dev/elsewhere/nothing | wc -c; head -c 3 /dev/elsewhere/zeros | wc -c");
    let device = |host: &str, inside: &str| cri::Device {
        host_path: host.to_owned(),
        container_path: inside.to_owned(),
        permissions: "rwm".to_owned(),
    };
    config.devices = vec![device("/dev/null", "/dev/elsewhere/nothing"), device("/dev/zero", "/dev/elsewhere/zeros")];
    assert_eq!(bench.output("device", config).await, ["0", "3"]);
    bench.put_away().await;
}

#[tokio::test]
async fn a_container_is_stopped_by_the_signal_that_it_names() {
    let bench = Bench::set_up().await;
    let mut config =
        shell("stopped", "trap 'exit 5' USR1; trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done");
    config.set_stop_signal(cri::Signal::Sigusr1);
    let id = bench.node.start_container(&bench.pod, config, &bench.config).await;
    let log = bench.node.log_of("bench", "stopped");
    eventually("its traps are set", || (log.exists() && !log_lines(&log).is_empty()).then_some(())).await;
    let stop = cri::StopContainerRequest { container_id: id.clone(), timeout: 20 };
    bench.node.runtime().await.stop_container(stop).await.expect("StopContainer");
    assert_eq!(bench.node.container_status(&id).await.exit_code, 5);
    bench.put_away().await;
}

#[tokio::test]
async fn sources_that_are_links_are_followed_and_log_paths_stay_where_they_belong() {
    let bench = Bench::set_up().await;
    let (real, link) = (bench.node.dir.join("real"), bench.node.dir.join("link"));
    std::fs::create_dir(&real).expect("a directory of ours");
    std::fs::write(real.join("file"), "behind the link\n").expect("a file of ours");
    std::os::unix::fs::symlink(&real, &link).expect("a link of ours");
    let mut config = shell("links", "cat /volume/file; ls -d /missing");
    let mount = |from: &std::path::Path, to: &str| cri::Mount {
        container_path: to.to_owned(),
        host_path: from.display().to_string(),
        ..Default::default()
    };
    config.mounts = vec![mount(&link, "/volume"), mount(&bench.node.dir.join("made/deep"), "/missing")];
    assert_eq!(bench.output("links", config).await, ["behind the link", "/missing"]);
    assert!(bench.node.dir.join("made/deep").is_dir(), "what is missing is made");

    for path in ["../outside.log", "/tmp/outside.log", "a/../../outside.log"] {
        let mut config = shell("outside", "true");
        config.log_path = path.to_owned();
        assert_eq!(bench.refusal(config).await.code(), Code::InvalidArgument, "{path}");
    }
    bench.put_away().await;
}
