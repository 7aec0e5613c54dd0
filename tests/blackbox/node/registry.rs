//! Debian's docker-registry on a loopback port, for as long as a test runs, and the node's way to it.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{Node, eventually, provision, succeed, text};

/// Starts programs, at the host or in a node.
type Place = Box<dyn Fn(&[&str]) -> Command>;

/// A running registry. Dropping it ends it.
pub struct Registry {
    process: Child,
    place: Place,
    /// `127.0.0.1:PORT`.
    pub address: String,
    /// `user:secret`, where it asks for that.
    login: Option<&'static str>,
}

/// What [`Registry::start_private`] asks for, and how htpasswd writes it.
const LOGIN: &str = "user:secret";
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

impl Registry {
    /// Starts one and tells the node that it speaks plain HTTP.
    pub async fn start(node: &Node) -> Self {
        Self::start_with(node, None).await
    }

    /// As [`Self::start`]; it serves only those who say [`LOGIN`].
    pub async fn start_private(node: &Node) -> Self {
        let dir = node.dir.join("registry");
        std::fs::create_dir_all(&dir).expect("a directory of ours");
        std::fs::write(dir.join("htpasswd"), HTPASSWD).expect("a file of ours");
        Self::start_with(node, Some(LOGIN)).await
    }

    /// Starts one in the node, which must be there, at its loopback address, and tells nobody.
    pub async fn start_inside(node: &Node) -> Self {
        Self::start_at(node, node.enter(), "registry-inside", None).await
    }

    async fn start_with(node: &Node, login: Option<&'static str>) -> Self {
        let here = |words: &[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        };
        let registry = Self::start_at(node, Box::new(here), "registry", login).await;
        registry.serve_as(node, &registry.address);
        registry
    }

    async fn start_at(node: &Node, place: Place, name: &str, login: Option<&'static str>) -> Self {
        let (dir, script) = (node.dir.join(name), provision("scripts/registry"));
        let mut command = place(&[&script.to_string_lossy(), &dir.to_string_lossy()]);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("bash");
        let file = dir.join("address");
        let address = eventually("the registry listens", || std::fs::read_to_string(&file).ok()).await;
        Self { process, place, address: address.trim().to_owned(), login }
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
        self.push_archive(&provision(&format!("images/{image}.tar")), repository)
    }

    /// Pushes the image of an archive, and answers the name by which it can be pulled.
    pub fn push_archive(&self, archive: &Path, repository: &str) -> String {
        let name = format!("{}/{repository}", self.address);
        let script = provision("scripts/push");
        let mut command = (self.place)(&[&script.to_string_lossy(), &archive.to_string_lossy(), &name]);
        command.envs(self.login.map(|login| ("PUSH_LOGIN", login)));
        let output = succeed(&mut command);
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
