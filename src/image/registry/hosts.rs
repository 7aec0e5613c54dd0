//! Where a registry is dialled: `DIRECTORY/HOST/hosts.toml`, in the format that containerd gave the field.
//!
//! ```text
//! server = "https://registry.example"        # the registry itself, asked last; without it: the host of the name
//! capabilities, ca, client, ...              # of the server
//!
//! [host."https://mirror.example"]            # mirrors, asked first, in the file's order
//!   capabilities = ["pull", "resolve"]       # without "resolve" it is not trusted to say what a tag is
//!   ca = "ca.pem"                            # or a list; relative to the file
//!   client = [["client.pem", "client.key"]]  # or a file that has both
//!   skip_verify = false
//!   override_path = false                    # true: the URL's path is the whole root, without /v2
//!   dial_timeout = "5s"
//!   proxy = "http://proxy.example:3128"      # instead of the environment's
//!   network = "node"                         # ours: dialled in the node's network, or on the "host"
//!   [host."https://mirror.example".header]
//!     x-name = "value"                       # or a list
//! ```
//!
//! HOST is `name_port_`, `name:port` or `name`, else `_default`. Without a hosts.toml, `*.crt` in the directory are
//! authorities and `NAME.cert` with `NAME.key` is a client's certificate. Nothing here dials.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Url;
use serde::Deserialize;
use toml::Spanned;

use super::duration::go_duration;
use super::files;

/// Most mirrors of one registry.
const HOSTS_MAX: usize = 32;
/// Docker Hub's name, and where it is dialled.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_ADDRESS: &str = "registry-1.docker.io";

/// A configuration that cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the registry configuration {path:?} cannot be used: {problem}")]
pub struct HostsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// How the other side is trusted and how we prove who we are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities beside the system's.
    pub authorities: Vec<PathBuf>,
    /// Certificate and key; without a key both are in the one file.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
    /// Any certificate will do.
    pub skip_verify: bool,
}

/// One place where a registry's images are.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Root of the API, without a slash at its end: `https://registry.example/v2`.
    pub base: Url,
    /// The registry it stands for, where that is another.
    pub mirrors: Option<String>,
    /// May say which image a tag is.
    pub resolve: bool,
    /// Serves content by digest.
    pub pull: bool,
    /// See [`TlsFiles`].
    pub tls: TlsFiles,
    /// Sent to this host only.
    pub header: HeaderMap,
    /// For a connection.
    pub dial_timeout: Option<Duration>,
    /// Instead of the environment's.
    pub proxy: Option<Url>,
    /// A loopback address: no proxy of the environment is asked.
    pub is_loopback: bool,
    /// Where an ordinary user's daemon dials it; none: a loopback address in the node if somebody listens there, and
    /// everything else on the host.
    pub network: Option<DialNetwork>,
}

/// Whose network a registry is dialled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DialNetwork {
    /// The one that pods of the node's network have.
    Node,
    /// The machine's.
    Host,
}

/// The places to ask for images of `registry` (a reference's host), in order. Reads files: call it where that may
/// block.
pub fn hosts_of(directory: &Path, registry: &str) -> Result<Vec<HostOptions>, HostsError> {
    let mut tls = TlsFiles::default();
    if let Some(found) = directory_of(directory, registry) {
        let path = found.join("hosts.toml");
        match files::read(&path) {
            Ok(Some(bytes)) => {
                return parse(&found, registry, &bytes).map_err(|problem| HostsError { path, problem });
            }
            Ok(None) => {
                tls = certificates_in(&found).map_err(|e| HostsError { path: found, problem: e.to_string() })?;
            }
            Err(error) => return Err(HostsError { path, problem: error.to_string() }),
        }
    }
    let server = RawHost::default().build(directory, registry, &implied_server(registry));
    let mut server = server.map_err(|problem| HostsError { path: directory.to_owned(), problem })?;
    server.tls = tls;
    Ok(vec![server])
}

fn directory_of(directory: &Path, registry: &str) -> Option<PathBuf> {
    let mut names = Vec::new();
    if let Some((name, port)) = registry.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        names.push(format!("{name}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    names.into_iter().map(|name| directory.join(name)).find(|path| path.is_dir())
}

fn certificates_in(directory: &Path) -> std::io::Result<TlsFiles> {
    let mut tls = TlsFiles::default();
    for entry in std::fs::read_dir(directory)?.take(HOSTS_MAX) {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.authorities.push(path),
            Some("cert") => tls.client = Some((path.clone(), Some(path.with_extension("key")))),
            _ => {}
        }
    }
    tls.authorities.sort();
    Ok(tls)
}

fn parse(directory: &Path, registry: &str, bytes: &[u8]) -> Result<Vec<HostOptions>, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let file: RawFile = toml::from_str(text).map_err(|e| e.to_string())?;
    let server: RawHost = toml::from_str(text).map_err(|e| e.to_string())?;
    if file.host.len() > HOSTS_MAX {
        return Err(format!("more than {HOSTS_MAX} hosts"));
    }
    let mut mirrors: Vec<_> = file.host.into_iter().collect();
    // The order of the file is the order of the tries; the map has forgotten it.
    mirrors.sort_by_key(|(url, _)| url.span().start);
    let mut hosts = Vec::new();
    for (url, raw) in mirrors {
        hosts.push(raw.build(directory, registry, url.get_ref())?);
    }
    let address = if file.server.is_empty() { implied_server(registry) } else { file.server };
    hosts.push(server.build(directory, registry, &address)?);
    Ok(hosts)
}

#[derive(Deserialize)]
struct RawFile {
    #[serde(default)]
    server: String,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, RawHost>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawHost {
    capabilities: Vec<String>,
    ca: OneOrMany<PathBuf>,
    client: OneOrMany<RawClient>,
    skip_verify: bool,
    header: BTreeMap<String, OneOrMany<String>>,
    override_path: bool,
    dial_timeout: String,
    proxy: String,
    network: Option<DialNetwork>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawClient {
    Both(PathBuf),
    Pair([PathBuf; 2]),
}

impl RawHost {
    fn build(self, directory: &Path, registry: &str, address: &str) -> Result<HostOptions, String> {
        let base = base_url(address, self.override_path)?;
        let mut host = HostOptions {
            mirrors: (!is_at(registry, &base)).then(|| registry.to_owned()),
            is_loopback: base.host_str().is_some_and(is_loopback),
            base,
            resolve: self.capabilities.is_empty(),
            pull: self.capabilities.is_empty(),
            tls: TlsFiles { skip_verify: self.skip_verify, ..TlsFiles::default() },
            header: header_map(self.header)?,
            dial_timeout: None,
            proxy: None,
            network: self.network,
        };
        for capability in &self.capabilities {
            match capability.to_ascii_lowercase().as_str() {
                "resolve" => host.resolve = true,
                "pull" => host.pull = true,
                "push" => {}
                other => return Err(format!("{other:?} is no capability: pull, resolve and push are")),
            }
        }
        host.tls.authorities = self.ca.into_vec().into_iter().map(|path| directory.join(path)).collect();
        host.tls.client = self.client.into_vec().into_iter().next().map(|client| match client {
            RawClient::Both(path) => (directory.join(path), None),
            RawClient::Pair([path, key]) if key.as_os_str().is_empty() => (directory.join(path), None),
            RawClient::Pair([path, key]) => (directory.join(path), Some(directory.join(key))),
        });
        if !self.dial_timeout.is_empty() {
            let timeout = go_duration(&self.dial_timeout);
            host.dial_timeout = Some(timeout.ok_or_else(|| format!("{:?} is no duration", self.dial_timeout))?);
        }
        if !self.proxy.is_empty() {
            host.proxy = Some(self.proxy.parse().map_err(|e| format!("the proxy's URL: {e}"))?);
        }
        Ok(host)
    }
}

fn header_map(raw: BTreeMap<String, OneOrMany<String>>) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, values) in raw {
        let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is no header"))?;
        for value in values.into_vec() {
            let mut value: HeaderValue =
                value.parse().map_err(|_| format!("the value of the header {name} is none"))?;
            // People put secrets there.
            value.set_sensitive(true);
            map.append(name.clone(), value);
        }
    }
    Ok(map)
}

/// Without a configuration: TLS, but plain HTTP for a registry on a loopback address at a port of its own.
fn implied_server(registry: &str) -> String {
    let (name, port) = match registry.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (registry, ""),
    };
    let is_plain = is_loopback(name) && !matches!(port, "" | "443");
    format!("{}://{registry}", if is_plain { "http" } else { "https" })
}

/// Whether a host's name is one of the machine's own.
pub fn is_loopback(name: &str) -> bool {
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn base_url(address: &str, override_path: bool) -> Result<Url, String> {
    let address = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
    let mut url: Url = address.parse().map_err(|e| format!("{address:?} is no URL: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("{address:?} is no URL of http or https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL must not hold credentials; they come with the pull".to_owned());
    }
    if url.host_str() == Some(DOCKER_HUB) {
        url.set_host(Some(DOCKER_HUB_ADDRESS)).map_err(|e| e.to_string())?;
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/').to_owned();
    let path = if override_path || path.ends_with("/v2") { path } else { format!("{path}/v2") };
    url.set_path(&path);
    Ok(url)
}

/// Whether `base` is the registry's own address and not a mirror's.
fn is_at(registry: &str, base: &Url) -> bool {
    base_url(&format!("{}://{registry}", base.scheme()), false).is_ok_and(|own| authority(&own) == authority(base))
}

/// `host` or `host:port` where the port is not the scheme's own.
pub fn authority(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests;
