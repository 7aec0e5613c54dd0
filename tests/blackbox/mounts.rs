//! Mounts as a container sees them: images, propagation, options, and the volumes that an image declares.

use std::path::PathBuf;

use cricket::proto::cri;
use cricket::sys::crash::Point;

use crate::node::{Node, container, create_request, eventually, log_lines, pod, succeed};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
const VOLUMES: &str = "cricket.local/volumes:latest";

/// A container from `image` that runs a script of the shell.
fn shell(image: &str, script: &str) -> cri::ContainerConfig {
    let mut config = container("main", &["sh", "-c", script]);
    config.image = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
    config
}

fn image_mount(image: &str, sub_path: &str) -> cri::Mount {
    cri::Mount {
        container_path: "/volume".to_owned(),
        image: Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() }),
        image_sub_path: sub_path.to_owned(),
        readonly: true,
        ..Default::default()
    }
}

fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// Runs one container in a pod of its own and answers what it wrote.
async fn output(node: &Node, name: &str, config: cri::ContainerConfig) -> Vec<String> {
    let pod_config = pod(node, name);
    let pod = node.run_pod(&pod_config).await;
    let id = node.start_container(&pod, config, &pod_config).await;
    node.exit_of(&id).await;
    let lines = log_lines(&node.log_of(name, "main")).into_iter().map(|line| line.content).collect();
    node.remove_pod(&pod).await;
    lines
}

async fn refusal(node: &Node, pod: &str, pod_config: &cri::PodSandboxConfig, config: cri::ContainerConfig) -> String {
    let request = create_request(pod, config, pod_config);
    node.runtime().await.create_container(request).await.expect_err("it is refused").message().to_owned()
}

#[tokio::test]
async fn an_image_is_mounted_read_only_with_its_sub_path() {
    let node = Node::start().await;
    node.load("busybox");
    node.load("volumes");
    let mut config =
        shell(BUSYBOX, "cat /volume/seeded/file; touch /volume/new; touch /volume/seeded/file; ls /volume/link/");
    config.mounts = vec![image_mount(VOLUMES, "")];
    let lines = output(&node, "image-volume", config).await;
    assert_eq!(lines[0], "from the image");
    assert_eq!(lines.iter().filter(|line| line.contains("Read-only file system")).count(), 2, "{lines:?}");

    let mut config = shell(BUSYBOX, "cat /volume/file; wc -c </volume2");
    let file = cri::Mount { container_path: "/volume2".to_owned(), ..image_mount(VOLUMES, "seeded/file") };
    config.mounts = vec![image_mount(VOLUMES, "seeded"), file];
    assert_eq!(output(&node, "sub-path", config).await, ["from the image", "15"]);

    let pod_config = pod(&node, "refused");
    let pod = node.run_pod(&pod_config).await;
    for (image, sub_path) in [("cricket.local/none:latest", ""), (VOLUMES, "missing"), (VOLUMES, "link/../../etc")] {
        let mut config = shell(BUSYBOX, "true");
        config.mounts = vec![image_mount(image, sub_path)];
        let message = refusal(&node, &pod, &pod_config, config).await;
        assert!(message.contains("ImageVolumeMountFailed") || message.contains("sub path"), "{message}");
    }
    node.remove_pod(&pod).await;
    let left: Vec<_> =
        std::fs::read_dir(node.root().join("images/snapshots")).expect("the snapshots").flatten().collect();
    assert!(left.is_empty(), "the volumes' snapshots went with their containers: {left:?}");
    succeed(node.cricket(["image", "remove"]).args([VOLUMES, BUSYBOX]));
    node.stop_and_account().await;
}

#[tokio::test]
async fn an_image_stays_mounted_while_the_daemon_comes_and_goes() {
    let mut node = Node::start().await;
    node.load("busybox");
    node.load("volumes");
    let pod_config = pod(&node, "stays");
    let pod = node.run_pod(&pod_config).await;
    let mut config = shell(BUSYBOX, "sleep 1000");
    config.mounts = vec![image_mount(VOLUMES, "seeded")];
    let id = node.start_container(&pod, config, &pod_config).await;
    succeed(node.cricket(["image", "remove"]).arg(VOLUMES));
    node.kill_daemon();
    node.serve();
    node.wait_until_ready().await;
    assert_eq!(node.exec(&id, &["cat", "/volume/file"], 10).await.expect("ExecSync").stdout, b"from the image\n");
    let left = std::fs::read_dir(node.root().join("images/snapshots")).expect("the snapshots").count();
    assert_eq!(left, 2, "the container's and its volume's");
    node.remove_pod(&pod).await;
    succeed(node.cricket(["image", "remove"]).arg(BUSYBOX));
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_link_in_a_sub_path_stays_inside_the_image() {
    let node = Node::start().await;
    node.load("busybox");
    node.load("volumes");
    let mut config = shell(BUSYBOX, "ls -a /volume | wc -l; ls /volume");
    // A link to /real: the image's, which is empty; never the node's.
    config.mounts = vec![image_mount(VOLUMES, "link")];
    assert_eq!(output(&node, "link", config).await, ["2"]);
    succeed(node.cricket(["image", "remove"]).args([VOLUMES, BUSYBOX]));
    node.stop_and_account().await;
}

#[tokio::test]
async fn an_images_volumes_are_writable_under_a_read_only_root() {
    let node = Node::start().await;
    node.load("volumes");
    let script = "for d in /seeded /link /real /made/deep / /etc; do touch $d/new 2>/dev/null && echo $d; done; \
                  cat /seeded/file; echo x 2>/dev/null >/proc/sys/new || echo proc";
    let mut config = shell(VOLUMES, script);
    security(&mut config).readonly_rootfs = true;
    let lines = output(&node, "read-only", config).await;
    assert_eq!(lines, ["/seeded", "/link", "/real", "/made/deep", "from the image", "proc"]);
    let mut config = shell(VOLUMES, "touch /made/deep/new && echo made");
    security(&mut config).readonly_rootfs = false;
    assert_eq!(output(&node, "writable", config).await, ["made"]);
    succeed(node.cricket(["image", "remove"]).arg(VOLUMES));
    node.stop_and_account().await;
}

#[tokio::test]
async fn options_of_a_mount_are_applied_and_unknown_ones_refused() {
    let node = Node::start().await;
    node.load("busybox");
    let volume = node.dir.join("volume");
    std::fs::create_dir(&volume).expect("a directory of ours");
    let mount = |options: &[&str]| cri::Mount {
        container_path: "/volume".to_owned(),
        host_path: volume.display().to_string(),
        mount_options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    };
    let script = "cp /bin/true /volume/true; chmod +x /volume/true; /volume/true && echo ran; \
                  grep -c ' /volume .*nosuid,nodev,noexec' /proc/self/mountinfo";
    for (name, options, expected) in
        [("plain", &[][..], &["ran", "0"][..]), ("options", &["noexec", "nodev", "nosuid"], &["1"])]
    {
        let mut config = shell(BUSYBOX, script);
        config.mounts = vec![mount(options)];
        let lines = output(&node, name, config).await;
        let lines: Vec<_> = lines.iter().filter(|line| !line.contains("denied")).collect();
        assert_eq!(lines, expected, "{name}");
    }
    let pod_config = pod(&node, "refused");
    let pod = node.run_pod(&pod_config).await;
    let mut config = shell(BUSYBOX, "true");
    config.mounts = vec![mount(&["idmap"])];
    assert!(refusal(&node, &pod, &pod_config, config).await.contains("idmap"));
    node.remove_pod(&pod).await;
    succeed(node.cricket(["image", "remove"]).arg(BUSYBOX));
    node.stop_and_account().await;
}

#[tokio::test]
async fn mounts_come_in_the_order_of_their_destinations() {
    let node = Node::start().await;
    node.load("busybox");
    let below = |path: &str, word: &str| {
        let source = node.dir.join(word);
        // The mount points of the others.
        std::fs::create_dir_all(source.join("middle/inner")).expect("a directory of ours");
        std::fs::create_dir_all(source.join("inner")).expect("a directory of ours");
        std::fs::write(source.join("word"), word).expect("a file of ours");
        let host_path = source.display().to_string();
        cri::Mount { container_path: path.to_owned(), host_path, ..Default::default() }
    };
    // In the order given the last would cover the others; the trailing slash and the dots change nothing.
    let mut config = shell(BUSYBOX, "cd /volume; for d in . middle middle/inner; do cat $d/word; echo; done");
    config.mounts =
        vec![below("/volume/./middle/inner/", "inner"), below("/volume/middle", "middle"), below("/volume/", "outer")];
    assert_eq!(output(&node, "order", config).await, ["outer", "middle", "inner"]);
    succeed(node.cricket(["image", "remove"]).arg(BUSYBOX));
    node.stop_and_account().await;
}

/// What happens to mounts that the node and a privileged container make below a volume of the given propagation:
/// whether the container sees the node's, and the node the container's.
async fn propagates(node: &Node, propagation: cri::MountPropagation) -> (bool, bool) {
    let name = format!("{propagation:?}").to_lowercase();
    let volume: PathBuf = node.dir.join(&name);
    for below in ["outside", "inside"] {
        std::fs::create_dir_all(volume.join(below)).expect("a directory of ours");
    }
    let mut pod_config = pod(node, &name);
    let linux = pod_config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let pod = node.run_pod(&pod_config).await;
    let script = "mount -t tmpfs inside /volume/inside && touch /volume/inside/seen && echo mounted; \
                  until [ -e /volume/go ]; do sleep 0.05; done; ls /volume/outside; echo listed; sleep 1000";
    let mut config = shell(BUSYBOX, script);
    security(&mut config).privileged = true;
    let mount = cri::Mount {
        container_path: "/volume".to_owned(),
        host_path: volume.display().to_string(),
        propagation: propagation.into(),
        ..Default::default()
    };
    config.mounts = vec![mount];
    let id = node.start_container(&pod, config, &pod_config).await;
    let log = node.log_of(&name, "main");
    let lines =
        || if log.exists() { log_lines(&log).into_iter().map(|line| line.content).collect() } else { Vec::new() };
    let has = |word: &str| lines().iter().any(|line: &String| line == word).then_some(());
    eventually("it has mounted", || has("mounted")).await;

    // As a volume driver's container would, or the kubelet: in the node.
    let outside = volume.join("outside");
    let script = format!("mount -t tmpfs outside '{0}' && touch '{0}/seen'", outside.display());
    succeed(node.cricket(["enter", "--", "sh", "-c", &script]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
    let inside = format!("ls '{}'", volume.join("inside").display());
    let listed = succeed(node.cricket(["enter", "--", "sh", "-c", &inside]).env("PATH", "/usr/bin:/bin"));
    std::fs::write(volume.join("go"), "").expect("a file of ours");
    eventually("it has listed", || has("listed")).await;
    let container_sees = has("seen").is_some();
    succeed(node.cricket(["enter", "--", "umount", &outside.display().to_string()]).env("PATH", "/usr/bin:/bin"));
    let _ = id;
    node.remove_pod(&pod).await;
    (container_sees, String::from_utf8_lossy(&listed.stdout).contains("seen"))
}

#[tokio::test]
async fn mounts_travel_as_the_propagation_says() {
    let node = Node::start().await;
    node.load("busybox");
    for (propagation, expected) in [
        (cri::MountPropagation::PropagationPrivate, (false, false)),
        (cri::MountPropagation::PropagationHostToContainer, (true, false)),
        (cri::MountPropagation::PropagationBidirectional, (true, true)),
    ] {
        assert_eq!(propagates(&node, propagation).await, expected, "{propagation:?}");
    }
    succeed(node.cricket(["image", "remove"]).arg(BUSYBOX));
    node.stop_and_account().await;
}

#[tokio::test]
async fn a_directory_over_dev_is_seen_whole_and_stays_as_it_was() {
    let node = Node::start().await;
    node.load("busybox");
    let directory = node.dir.join("devices");
    std::fs::create_dir_all(directory.join("volume")).expect("a directory");
    std::fs::write(directory.join("device"), "").expect("a file");
    std::fs::write(directory.join("ptmx"), "the node's").expect("a file");
    let mount = |host: PathBuf, inside: &str| cri::Mount {
        host_path: host.to_str().expect("a text").to_owned(),
        container_path: inside.to_owned(),
        ..Default::default()
    };
    let mut config = shell(BUSYBOX, "ls /dev; cat /dev/ptmx; echo; ls /dev/volume; touch /dev/new; ls /dev/null");
    let below = mount(directory.join("volume"), "/dev/volume");
    std::fs::write(directory.join("volume/file"), "").expect("a file");
    config.mounts = vec![cri::Mount { readonly: true, ..mount(directory.clone(), "/dev") }, below];
    let lines = output(&node, "over-dev", config).await;
    let expected = ["device", "ptmx", "volume", "the node's", "file"];
    assert_eq!(lines[..expected.len()], expected, "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("Read-only file system")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("/dev/null: No such file")), "{lines:?}");
    let mut names: Vec<_> = std::fs::read_dir(&directory).expect("read").flatten().map(|e| e.file_name()).collect();
    names.sort();
    assert_eq!(names, ["device", "ptmx", "volume"], "the runtime made nothing in it");

    // Deeper than one name below /dev, and twice over it: the volumes are the runtime's in no case.
    let mut config = shell(BUSYBOX, "ls /dev/volume/deep /dev/null; ls /dev/volume");
    std::fs::create_dir(directory.join("volume/deep")).expect("a directory");
    let deep = mount(directory.join("volume"), "/dev/volume/deep");
    config.mounts = vec![deep, mount(directory.join("volume"), "/dev/volume")];
    let lines = output(&node, "deep", config).await;
    assert_eq!(lines, ["/dev/null", "", "/dev/volume/deep:", "deep", "file", "deep", "file"]);
    let mut config = shell(BUSYBOX, "ls /dev");
    config.mounts = vec![mount(directory.join("volume"), "/dev"), mount(directory.clone(), "/dev")];
    assert_eq!(output(&node, "twice", config).await, ["device", "ptmx", "volume"]);
    assert_eq!(std::fs::read(directory.join("ptmx")).expect("still there"), b"the node's");

    let pod_config = pod(&node, "missing");
    let pod = node.run_pod(&pod_config).await;
    let mut config = shell(BUSYBOX, "true");
    config.mounts = vec![mount(directory.clone(), "/dev"), mount(directory.clone(), "/dev/missing")];
    let request = create_request(&pod, config, &pod_config);
    let status = node.runtime().await.create_container(request).await.expect_err("it is refused");
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    assert!(status.message().contains("/dev/missing"), "{status}");
    node.remove_pod(&pod).await;

    let mut config = shell(BUSYBOX, "ls -d /dev/null /dev/zero /dev/stdout; echo x >/dev/null; echo $?");
    config.mounts = vec![mount("/dev".into(), "/dev")];
    assert_eq!(output(&node, "nodes-dev", config).await, ["/dev/null", "/dev/stdout", "/dev/zero", "0"]);
    succeed(node.cricket(["image", "remove"]).arg(BUSYBOX));
    node.stop_and_account().await;
}

#[tokio::test]
async fn what_cannot_be_mounted_on_each_other_is_named() {
    let node = Node::start().await;
    node.load("busybox");
    let pod_config = pod(&node, "mismatch");
    let pod = node.run_pod(&pod_config).await;
    let directory = node.dir.join("a-directory");
    std::fs::create_dir_all(&directory).expect("a directory");
    let file = directory.join("a-file");
    std::fs::write(&file, "").expect("a file");
    for (source, place) in [(&file, "/etc"), (&directory, "/etc/passwd")] {
        let mut config = shell(BUSYBOX, "true");
        let host_path = source.to_str().expect("a text").to_owned();
        config.mounts = vec![cri::Mount { host_path, container_path: place.to_owned(), ..Default::default() }];
        let request = create_request(&pod, config, &pod_config);
        let status = node.runtime().await.create_container(request).await.expect_err("it is refused");
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        assert!(status.message().contains(place) && status.message().contains("a-"), "{status}");
    }
    node.remove_pod(&pod).await;
    succeed(node.cricket(["image", "remove"]).arg(BUSYBOX));
    node.stop_and_account().await;
}

/// The source becomes a link to somewhere else after the daemon has looked at it (CVE-2021-25741).
#[tokio::test]
async fn row_15_a_source_that_is_swapped_after_its_check_is_not_mounted() {
    const MANY: usize = 300;
    let node = Node::start_with_crash_points().await;
    node.load("busybox");
    let pod_config = pod(&node, "swapped");
    let pod = node.run_pod(&pod_config).await;
    let base = node.logs().join("sources");
    let (volume, aside, secret) = (base.join("volume"), base.join("aside"), base.join("secret"));
    for directory in [&volume, &secret] {
        std::fs::create_dir_all(directory).expect("a directory of ours");
        let name = directory.file_name().expect("a name").to_str().expect("a text");
        std::fs::write(directory.join("which"), format!("{name}\n")).expect("a file of ours");
    }
    let mount = |number: usize| cri::Mount {
        container_path: format!("/m/{number}"),
        host_path: volume.to_str().expect("a text").to_owned(),
        ..Default::default()
    };
    let mut config = shell(BUSYBOX, "cat /m/*/which | sort | uniq -c");
    config.mounts = (0..MANY).map(mount).collect();
    for (point, taken) in [(Point::ContainerBundle, false), (Point::CreatorBegun, true)] {
        node.arm(point, "hold", 1);
        let request = create_request(&pod, config.clone(), &pod_config);
        let mut runtime = node.runtime().await;
        let call = tokio::spawn(async move { runtime.create_container(request).await });
        node.until_held().await;
        std::fs::rename(&volume, &aside).expect("moved");
        std::os::unix::fs::symlink(&secret, &volume).expect("a link");
        node.release();
        let answer = call.await.expect("no panic");
        std::fs::remove_file(&volume).and_then(|()| std::fs::rename(&aside, &volume)).expect("moved back");
        if !taken {
            let message = answer.expect_err("nobody knows where it leads").message().to_owned();
            assert!(message.contains("became a link"), "{message}");
            continue;
        }
        // What was looked at is mounted, wherever its name leads by now.
        let id = answer.expect("created").into_inner().container_id;
        let start = cri::StartContainerRequest { container_id: id.clone() };
        node.runtime().await.start_container(start).await.expect("started");
        node.exit_of(&id).await;
        let lines = log_lines(&node.log_of("swapped", "main"));
        let lines: Vec<_> = lines.iter().map(|line| line.content.trim()).collect();
        assert_eq!(lines, [format!("{MANY} volume")]);
    }
    node.remove_pod(&pod).await;
    node.stop_and_account().await;
}
