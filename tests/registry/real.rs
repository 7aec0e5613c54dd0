//! Debian's docker-registry: plain, behind a password, and behind TLS of a private authority.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cricket::image::digest::Digest;
use cricket::image::manifest::Manifest;
use cricket::image::registry::session::Session;
use cricket::image::registry::transfer;
use cricket::image::{Credentials, ImageErrorKind};
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use tokio::io::AsyncReadExt;

use super::fixture::{Directory, basic, kind, noise, patience};
use super::mock::listens;

/// How long a registry may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);
/// `user` with the password `secret`.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Runs until it is dropped.
pub struct Registry {
    pub address: SocketAddr,
    _directory: Directory,
    child: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    pub fn start(more: &str) -> Self {
        let directory = Directory::new();
        // Free a moment ago; another test may take it first, and then the registry ends and the test says so.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let path = directory.0.display();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {path}/data}}}}\n{}",
            more.replace("ADDRESS", &address.to_string()).replace("DIRECTORY", &path.to_string())
        );
        std::fs::write(directory.0.join("config.yml"), config).expect("a file");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(directory.0.join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("docker-registry; apt-get install docker-registry");
        let begun = Instant::now();
        while !listens(address) {
            assert!(begun.elapsed() < START_LIMIT && child.try_wait().is_ok_and(|s| s.is_none()), "it does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { address, _directory: directory, child }
    }

    pub fn plain() -> Self {
        Self::start("http: {addr: \"ADDRESS\"}\n")
    }

    /// Uploads what was made here.
    pub async fn put(&self, content: &super::fixture::Content, repository: &str, tag: &str, manifest: &Digest) {
        // Whoever was first has installed the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
        let base = format!("http://{}/v2/{repository}", self.address);
        for (digest, bytes) in &content.blobs {
            let begun = client.post(format!("{base}/blobs/uploads/")).send().await.expect("an answer");
            let place = begun.headers()["location"].to_str().expect("a place").to_owned();
            let upload = client.put(format!("{place}&digest={digest}")).body(bytes.clone());
            assert_eq!(upload.send().await.expect("an answer").status(), 201);
        }
        let (content_type, bytes) = content.manifests[&manifest.to_string()].clone();
        let upload = client.put(format!("{base}/manifests/{tag}")).header("content-type", content_type).body(bytes);
        assert_eq!(upload.send().await.expect("an answer").status(), 201);
    }

    /// Pushes an image of one layer with the common library: another reading of the specification than ours.
    pub async fn push(&self, name: &str, layer: &[u8], auth: &RegistryAuth) {
        let protocol = ClientProtocol::Http;
        let client = oci_client::Client::new(ClientConfig { protocol, ..ClientConfig::default() });
        let reference = format!("{}/{name}", self.address).parse().expect("a reference");
        let layers = [ImageLayer::new(layer.to_vec(), oci_client::manifest::IMAGE_LAYER_MEDIA_TYPE.to_owned(), None)];
        let config = Config::new(b"{}".to_vec(), oci_client::manifest::IMAGE_CONFIG_MEDIA_TYPE.to_owned(), None);
        client.push(&reference, &layers, config, auth, None).await.expect("a push");
    }
}

async fn session(certs: &Path, reference: &str, credentials: Option<Credentials>) -> Arc<Session> {
    let reference = reference.parse().expect("a reference");
    Arc::new(Session::open(certs.to_owned(), reference, credentials, patience()).await.expect("a session"))
}

/// Everything of the image, its only layer last.
async fn read_all(session: &Arc<Session>) -> Vec<u8> {
    let document = session.resolve().await.expect("a manifest");
    assert_eq!(session.current_digest().await.expect("an answer"), Some(document.digest.clone()));
    let parsed = Manifest::parse(&document.bytes, document.content_type.as_deref()).expect("a manifest");
    let Manifest::Image(manifest) = parsed else { panic!("an image") };
    assert_eq!(session.config(&manifest.config).await.expect("a config").bytes, b"{}");
    let (mut reader, _) = transfer::blob(Arc::clone(session), manifest.layers[0].clone());
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await.expect("the layer");
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_pushed_by_others_is_read() {
    let registry = Registry::plain();
    let layer = noise(1, 5_000_000);
    registry.push("a/b:1", &layer, &RegistryAuth::Anonymous).await;
    let none = Directory::new();
    let name = format!("{}/a/b", registry.address);
    let session_of_tag = session(&none.0, &format!("{name}:1"), None).await;
    assert_eq!(read_all(&session_of_tag).await, layer);
    let digest = session_of_tag.current_digest().await.expect("an answer").expect("a digest");
    assert_eq!(read_all(&session(&none.0, &format!("{name}@{digest}"), None).await).await, layer);
    let error = session(&none.0, &format!("{name}:2"), None).await.resolve().await.expect_err("no such tag");
    assert_eq!(
        error.to_string(),
        format!("{} has no manifest 2 of a/b (manifest unknown); check the name and the tag", registry.address)
    );
    assert_eq!(kind(error), ImageErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_asked_for() {
    let users = Directory::new();
    std::fs::write(users.0.join("htpasswd"), HTPASSWD).expect("a file");
    let auth = format!("auth: {{htpasswd: {{realm: x, path: {}/htpasswd}}}}\n", users.0.display());
    let registry = Registry::start(&format!("http: {{addr: \"ADDRESS\"}}\n{auth}"));
    let layer = noise(2, 100_000);
    registry.push("private:1", &layer, &RegistryAuth::Basic("user".to_owned(), "secret".to_owned())).await;
    let name = format!("{}/private:1", registry.address);
    assert_eq!(read_all(&session(&users.0, &name, basic("user", "secret")).await).await, layer);
    for credentials in [None, basic("user", "wrong"), basic("nobody", "secret")] {
        let error = session(&users.0, &name, credentials).await.resolve().await.expect_err("refused");
        assert_eq!(kind(error), ImageErrorKind::Unauthorized);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_of_a_private_authority_is_trusted_where_the_file_says_so() {
    let certs = Directory::new();
    make_certificates(&certs.0);
    let tls = format!("tls: {{certificate: {0}/server.pem, key: {0}/server.key}}", certs.0.display());
    let registry = Registry::start(&format!("http: {{addr: \"ADDRESS\", {tls}}}\n"));
    let name = format!("localhost:{}/a/b:1", registry.address.port());
    let host = certs.0.join(format!("localhost_{}_", registry.address.port()));
    std::fs::create_dir(&host).expect("a directory");
    let server = format!("server = \"https://localhost:{}\"\n", registry.address.port());
    for (more, kind_of_error) in [
        ("ca = \"../ca.pem\"", ImageErrorKind::NotFound),
        ("skip_verify = true", ImageErrorKind::NotFound),
        ("", ImageErrorKind::Unavailable),
        ("ca = \"../none.pem\"", ImageErrorKind::Internal),
    ] {
        std::fs::write(host.join("hosts.toml"), format!("{server}{more}")).expect("a file");
        let error = session(&certs.0, &name, None).await.resolve().await.expect_err("an empty registry");
        assert_eq!(kind(error.clone()), kind_of_error, "{more}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown() {
    let certs = Directory::new();
    make_certificates(&certs.0);
    let tls = format!(
        "tls: {{certificate: {0}/server.pem, key: {0}/server.key, clientcas: [{0}/ca.pem]}}",
        certs.0.display()
    );
    let registry = Registry::start(&format!("http: {{addr: \"ADDRESS\", {tls}}}\n"));
    let name = format!("localhost:{}/a/b:1", registry.address.port());
    let host = certs.0.join(format!("localhost:{}", registry.address.port()));
    std::fs::create_dir(&host).expect("a directory");
    let server = format!("server = \"https://localhost:{}\"\nca = \"../ca.pem\"\n", registry.address.port());
    for (client, kind_of_error) in [
        ("client = [[\"../server.pem\", \"../server.key\"]]", ImageErrorKind::NotFound),
        ("", ImageErrorKind::Unavailable),
    ] {
        std::fs::write(host.join("hosts.toml"), format!("{server}{client}")).expect("a file");
        let error = session(&certs.0, &name, None).await.resolve().await.expect_err("an empty registry");
        assert_eq!(kind(error.clone()), kind_of_error, "{client}: {error}");
    }
}

/// An authority (`ca.pem`) and a certificate of it for localhost, for servers and clients.
fn make_certificates(directory: &Path) {
    let script = "
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj /CN=localhost
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nextendedKeyUsage=serverAuth,clientAuth\\n' > extensions
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out server.pem";
    let done = Command::new("sh").args(["-ec", script]).current_dir(directory).stderr(Stdio::null()).status();
    assert!(done.is_ok_and(|status| status.success()), "openssl makes certificates");
}
