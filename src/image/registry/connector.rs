//! Makes HTTP clients: trust, client certificates, proxies, time-outs.
//!
//! A client lives as long as the pull that needed it: the next one reads the authorities and the environment anew.

use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Identity, Proxy, redirect};

use super::error::{RegistryError, Subject};
use super::files;
use super::hosts::{HostOptions, HostsError, TlsFiles, authority};

/// How we call ourselves.
const USER_AGENT: &str = concat!("cricket/", env!("CARGO_PKG_VERSION"));
/// How often a silent connection is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A client for https (`is_secure`) or http addresses that `options` lead to.
pub async fn client(
    options: &HostOptions,
    is_secure: bool,
    connect: Duration,
    subject: &Subject,
) -> Result<Client, RegistryError> {
    let options = options.clone();
    let (task, subject) = (subject.clone(), subject.clone());
    let made = tokio::task::spawn_blocking(move || build(&options, is_secure, connect, &task)).await;
    made.unwrap_or_else(|_| Err(subject.unavailable("the client could not be made")))
}

fn build(
    options: &HostOptions,
    is_secure: bool,
    connect: Duration,
    subject: &Subject,
) -> Result<Client, RegistryError> {
    // Whoever was first has installed the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(connect)
        .tcp_keepalive(KEEP_ALIVE);
    let builder = with_proxy(builder, options).map_err(|error| subject.transport(error))?;
    let builder = if is_secure { with_trust(builder, &options.tls)? } else { builder.tls_certs_only([]) };
    builder.build().map_err(|error| match is_secure {
        true => untrusting(options, &subject.transport(error)).into(),
        false => subject.transport(error),
    })
}

/// Mostly that this machine has no authorities at all.
fn untrusting(options: &HostOptions, error: &RegistryError) -> HostsError {
    let advice = "install your distribution's ca-certificates, or name an authority as `ca` in hosts.toml";
    HostsError { path: authority(&options.base).into(), problem: format!("{error}; {advice}") }
}

/// The host's own proxy, else the environment's; none for a loopback address.
fn with_proxy(builder: ClientBuilder, options: &HostOptions) -> reqwest::Result<ClientBuilder> {
    Ok(match &options.proxy {
        Some(proxy) => builder.no_proxy().proxy(Proxy::all(proxy.clone())?),
        None if options.is_loopback => builder.no_proxy(),
        None => builder,
    })
}

fn with_trust(mut builder: ClientBuilder, tls: &TlsFiles) -> Result<ClientBuilder, HostsError> {
    if tls.skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    let mut authorities = Vec::new();
    for path in &tls.authorities {
        let bundle = Certificate::from_pem_bundle(&read(path)?);
        authorities.extend(bundle.map_err(|error| unusable(path, &error.to_string()))?);
    }
    builder = builder.tls_certs_merge(authorities);
    if let Some((certificate, key)) = &tls.client {
        let mut pem = read(certificate)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        builder =
            builder.identity(Identity::from_pem(&pem).map_err(|error| unusable(certificate, &error.to_string()))?);
    }
    Ok(builder)
}

fn read(path: &Path) -> Result<Vec<u8>, HostsError> {
    match files::read(path) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(unusable(path, "there is no such file")),
        Err(error) => Err(unusable(path, &error.to_string())),
    }
}

fn unusable(path: &Path, problem: &str) -> HostsError {
    HostsError { path: path.to_owned(), problem: problem.to_owned() }
}
