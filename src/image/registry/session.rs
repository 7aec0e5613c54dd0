//! One image, one set of credentials, all the places where it may be.
//!
//! Nothing of a session outlives it: tokens, connections and what is known of hosts that are down go with the pull, so
//! no pull ever uses what another one's credentials have opened.

use std::path::PathBuf;
use std::sync::Arc;

use http::Method;
use http::header::CONTENT_TYPE;

use super::endpoint::{Ask, Endpoint, read_body};
use super::error::RegistryError;
use super::hosts::{HostsError, hosts_of};
use super::node::NodeNetwork;
use super::patience::Patience;
use super::token::Applicant;
use crate::image::Credentials;
use crate::image::digest::{Algorithm, Digest};
use crate::image::hasher::digest_of;
use crate::image::manifest::{CONFIG_BYTES_MAX, Descriptor, MANIFEST_BYTES_MAX};
use crate::image::reference::{Reference, Version};

/// Tries at a host after which there is another one to ask.
const MIRROR_ATTEMPTS: u32 = 2;
/// Manifests and indexes that are understood.
const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Blobs are what their descriptor says.
pub const ACCEPT_BLOBS: &str = "*/*";

/// See the head of this file.
pub struct Session {
    reference: Reference,
    credentials: Option<Credentials>,
    endpoints: Vec<Arc<Endpoint>>,
    patience: Patience,
}

/// A manifest, index or config as it came, its digest taken of its bytes.
#[derive(Debug, Clone)]
pub struct Document {
    /// Within their limit.
    pub bytes: Vec<u8>,
    /// Of the bytes.
    pub digest: Digest,
    /// The `Content-Type` header.
    pub content_type: Option<String>,
}

/// What a host must be trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To say what a tag is.
    Resolve,
    /// To have content, whose digest is known.
    Pull,
}

impl Session {
    /// Reads the configuration of the reference's host beneath `directory`; dials nothing.
    pub async fn open(
        directory: PathBuf,
        reference: Reference,
        credentials: Option<Credentials>,
        patience: Patience,
    ) -> Result<Self, RegistryError> {
        Self::open_in(directory, reference, credentials, patience, None).await
    }

    /// As [`Self::open`], where the `node` has a network of its own.
    pub async fn open_in(
        directory: PathBuf,
        reference: Reference,
        credentials: Option<Credentials>,
        patience: Patience,
        node: Option<Arc<NodeNetwork>>,
    ) -> Result<Self, RegistryError> {
        let (path, host) = (directory.clone(), reference.host().to_owned());
        let hosts = tokio::task::spawn_blocking(move || hosts_of(&path, &host)).await;
        let hosts = hosts.unwrap_or_else(|error| Err(HostsError { path: directory, problem: error.to_string() }))?;
        let endpoint = |options| Arc::new(Endpoint::new(options, patience.clone(), node.clone()));
        let endpoints = hosts.into_iter().map(endpoint).collect();
        Ok(Self { reference, credentials, endpoints, patience })
    }

    /// The manifest or index that the reference names.
    pub async fn resolve(&self) -> Result<Document, RegistryError> {
        let (need, version) = self.version();
        let ask = self.manifest_ask(Method::GET, &version);
        self.document(need, &ask, MANIFEST_BYTES_MAX, self.reference.digest(), None).await
    }

    /// The digest that the registry says the reference has now; `None`: it does not say. Costs no manifest, which some
    /// registries count, and proves that these credentials are good for the image. Asked once: who gets no answer asks
    /// for the manifest anyway.
    pub async fn current_digest(&self) -> Result<Option<Digest>, RegistryError> {
        let (need, version) = self.version();
        let ask = self.manifest_ask(Method::HEAD, &version);
        let Some((endpoint, _)) = self.candidates(need).into_iter().next() else { return Ok(None) };
        let response = endpoint.send(&ask, &self.applicant()).await?;
        let said = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        Ok(said.and_then(|text| text.parse().ok()).or_else(|| self.reference.digest().cloned()))
    }

    /// A manifest of an index.
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Document, RegistryError> {
        let ask = self.manifest_ask(Method::GET, &descriptor.digest.to_string());
        self.document(Need::Pull, &ask, MANIFEST_BYTES_MAX, Some(&descriptor.digest), Some(descriptor.size)).await
    }

    /// An image's config.
    pub async fn config(&self, descriptor: &Descriptor) -> Result<Document, RegistryError> {
        let ask = self.blob_ask(descriptor, None);
        self.document(Need::Pull, &ask, CONFIG_BYTES_MAX, Some(&descriptor.digest), Some(descriptor.size)).await
    }

    /// A request for a blob or the rest of it.
    pub fn blob_ask(&self, descriptor: &Descriptor, range: Option<(u64, u64)>) -> Ask {
        Ask {
            method: Method::GET,
            path: format!("{}/blobs/{}", self.reference.repository(), descriptor.digest),
            accept: ACCEPT_BLOBS,
            range,
            what: format!("blob {} of {}", descriptor.digest, self.reference.repository()),
        }
    }

    /// Who asks.
    pub fn applicant(&self) -> Applicant<'_> {
        Applicant { credentials: self.credentials.as_ref(), repository: self.reference.repository() }
    }

    /// How long to wait.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// The hosts to ask now, best first, each with how often: those that were down come last.
    pub fn candidates(&self, need: Need) -> Vec<(Arc<Endpoint>, u32)> {
        let suits = |endpoint: &&Arc<Endpoint>| match need {
            Need::Resolve => endpoint.options().resolve,
            Need::Pull => endpoint.options().pull,
        };
        let mut hosts: Vec<_> = self.endpoints.iter().filter(suits).cloned().collect();
        hosts.sort_by_key(|endpoint| endpoint.is_down());
        let last = hosts.len().saturating_sub(1);
        let attempts = |index| if index == last { self.patience.attempts } else { MIRROR_ATTEMPTS };
        hosts.into_iter().enumerate().map(|(index, endpoint)| (endpoint, attempts(index))).collect()
    }

    /// The error of a name for which no host may be asked.
    pub fn nobody(&self, need: Need) -> RegistryError {
        let capability = if need == Need::Resolve { "resolve" } else { "pull" };
        let path = PathBuf::from(self.reference.host());
        HostsError { path, problem: format!("no host in it has the capability {capability:?}") }.into()
    }

    fn version(&self) -> (Need, String) {
        match self.reference.version() {
            Version::Tag(tag) => (Need::Resolve, tag.clone()),
            Version::Digest(digest) => (Need::Pull, digest.to_string()),
        }
    }

    fn manifest_ask(&self, method: Method, version: &str) -> Ask {
        Ask {
            method,
            path: format!("{}/manifests/{version}", self.reference.repository()),
            accept: ACCEPT_MANIFESTS,
            range: None,
            what: format!("manifest {version} of {}", self.reference.repository()),
        }
    }

    /// A small document from the first host that has it as it should be.
    async fn document(
        &self,
        need: Need,
        ask: &Ask,
        limit: u64,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<Document, RegistryError> {
        let limit = size.map_or(limit, |size| size.min(limit));
        let mut errors = Vec::new();
        for (endpoint, attempts) in self.candidates(need) {
            match self.patience.persist(attempts, || self.fetch(&endpoint, ask, limit, digest, size)).await {
                Ok(document) => return Ok(document),
                Err(error) => {
                    if error.is_passing() {
                        endpoint.set_down();
                    }
                    errors.push(error);
                }
            }
        }
        Err(if errors.is_empty() { self.nobody(need) } else { RegistryError::of_hosts(errors) })
    }

    async fn fetch(
        &self,
        endpoint: &Endpoint,
        ask: &Ask,
        limit: u64,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<Document, RegistryError> {
        let subject = endpoint.subject(&ask.what);
        let response = endpoint.send(ask, &self.applicant()).await?;
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let bytes = endpoint.within_document_time(&subject, read_body(response, limit, &subject)).await?;
        if let Some(size) = size.filter(|size| *size != bytes.len() as u64) {
            return Err(subject.bad_answer(format!("{} bytes instead of {size}", bytes.len())));
        }
        let own = digest_of(digest.map_or(Algorithm::Sha256, Digest::algorithm), &bytes);
        match digest {
            Some(wanted) if *wanted != own => Err(subject.bad_answer(format!("its bytes have the digest {own}"))),
            _ => Ok(Document { bytes, digest: own, content_type }),
        }
    }
}
