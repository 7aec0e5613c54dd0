//! Debian's docker-registry on a loopback port, for as long as a test runs, and the node's way to it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::{Node, eventually, provision, succeed, text};

/// A running registry. Dropping it ends it.
pub struct Registry {
    process: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl Registry {
    /// Starts one and tells the node that it speaks plain HTTP.
    pub async fn start(node: &Node) -> Self {
        let dir = node.dir.join("registry");
        let mut command = Command::new(provision("scripts/registry"));
        let process = command.arg(&dir).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("bash");
        let file = dir.join("address");
        let address = eventually("the registry listens", || std::fs::read_to_string(&file).ok()).await;
        let registry = Self { process, address: address.trim().to_owned() };
        registry.serve_as(node, &registry.address);
        registry
    }

    /// Writes the mirror rule by which `host`'s images come from here.
    pub fn serve_as(&self, node: &Node, host: &str) {
        let rules = node.dir.join("certs.d").join(host);
        std::fs::create_dir_all(&rules).expect("a directory of ours");
        let url = format!("http://{}", self.address);
        let text = format!("server = \"{url}\"\n\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        std::fs::write(rules.join("hosts.toml"), text).expect("a file of ours");
    }

    /// Pushes one of scripts/images, and answers the name by which it can be pulled.
    pub fn push(&self, image: &str, repository: &str) -> String {
        let archive: PathBuf = provision(&format!("images/{image}.tar"));
        let name = format!("{}/{repository}", self.address);
        let output = succeed(Command::new(provision("scripts/push")).arg(archive).arg(&name));
        assert!(text(&output.stdout).contains("sha256:"), "scripts/push says the digest");
        name
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The script ends its registry when it is told to end; a SIGKILL would leave it.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}
