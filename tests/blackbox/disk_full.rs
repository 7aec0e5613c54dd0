//! A full disk: the right code, a message that names what to free, nothing left behind, and it works when there is
//! room.
//!
//! The root is a small tmpfs in a mount namespace of the test's own; the daemon is uid 0 of that user namespace.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cricket::proto::cri;

use crate::node::{DEMO, Node, Registry, archive_of, fail, layer_of, succeed, text};

/// Room on the disk.
const ROOM: &str = "12m";
/// More than fits.
const TOO_MUCH: usize = 16 << 20;
/// It fits, and what is fetched before the large one stays for the next try.
const LITTLE: usize = 64 << 10;

/// Holds the namespaces; ends with its standard input.
pub struct Disk {
    holder: Child,
}

impl Disk {
    fn mount(at: &Path) -> Self {
        Self::mount_with(at, &format!("size={ROOM}"))
    }

    /// A tmpfs with these options, seen by who enters only.
    pub fn mount_with(at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).expect("a directory of ours");
        let script = format!("mount -t tmpfs -o {options},mode=755 none \"$0\" && echo mounted && exec cat");
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--map-auto", "--mount", "--", "sh", "-c", &script]).arg(at);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare");
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        assert_eq!(line, "mounted\n");
        Self { holder }
    }

    /// What runs a command where the disk is.
    pub fn enter(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        ["nsenter", "--preserve-credentials", "--user", "--mount", "--target", &pid, "--"].map(str::to_owned).to_vec()
    }

    pub fn run(&self, script: &str, at: &Path) -> String {
        let enter = self.enter();
        let mut command = Command::new(&enter[0]);
        text(&succeed(command.args(&enter[1..]).args(["sh", "-c", script]).arg(at)).stdout)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_leaves_nothing_and_passes() {
    let mut node = Node::prepare().await;
    let registry = Registry::start(&node).await;
    let files = node.dir.clone();
    let write = |name: &str, layers: &[Vec<u8>]| {
        let path = files.join(name);
        std::fs::write(&path, archive_of(&format!("full.test/{name}:1"), layers)).expect("a file of ours");
        path
    };
    let large = write("large", &[layer_of("large", 1, TOO_MUCH)]);
    let small = write("small", &[layer_of("small", 2, LITTLE)]);
    let on_registry = registry.push_archive(&large, "full/large:1");
    let disk = Disk::mount(&node.root());
    node.enter = disk.enter();
    let node = node.begin().await;
    node.load_demo().await;
    let files_on_disk = || disk.run("find \"$0\" | sort", &node.root());
    let told = |said: &str| {
        assert_eq!(said.trim().lines().count(), 1, "{said}");
        assert!(said.contains("No space left") && said.contains("image prune"), "{said}");
    };
    let before = files_on_disk();
    told(&fail(node.cricket(["image", "load"]).arg(&large)).1);
    assert_eq!(files_on_disk(), before, "a load leaves nothing");
    told(&fail(&mut node.cricket(["image", "pull", &on_registry])).1);
    assert_eq!(files_on_disk(), before, "a pull leaves nothing");
    let image = Some(cri::ImageSpec { image: on_registry.clone(), ..Default::default() });
    let request = cri::PullImageRequest { image, ..Default::default() };
    let status = node.images().await.pull_image(request).await.expect_err("full");
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");

    // To the last byte: not even a record can be written.
    let fill =
        "dd if=/dev/zero of=\"$0/ballast\" bs=64k 2>/dev/null; dd if=/dev/zero bs=1 >>\"$0/ballast\" 2>/dev/null; :";
    disk.run(fill, &node.root());
    let before = files_on_disk();
    told(&fail(node.cricket(["image", "load"]).arg(&small)).1);
    assert_eq!(files_on_disk(), before, "a load that cannot even begin leaves nothing");
    succeed(&mut node.cricket(["image", "verify"]));
    succeed(&mut node.cricket(["image", "remove", DEMO]));
    disk.run("rm \"$0/ballast\"", &node.root());
    succeed(node.cricket(["image", "load"]).arg(&small));
    let listed = text(&succeed(&mut node.cricket(["image", "list"])).stdout);
    assert!(listed.contains("full.test/small:1") && !listed.contains("large"), "{listed}");
    node.terminate_and_account().await;
}
