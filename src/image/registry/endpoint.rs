//! One host: sends it requests, with what it wants to know of us, and follows where it points.
//!
//! Redirects are followed here and not by the HTTP library, because what goes along depends on where they lead: the
//! `Authorization` header and the configured ones go to the host's own origin and nowhere else, and an https host
//! cannot send us to plain HTTP.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Client, RequestBuilder, Response, Url};
use tokio::sync::OnceCell;

use super::auth::challenges;
use super::connector;
use super::error::{RegistryError, Subject};
use super::hosts::{DialNetwork, HostOptions, authority, is_loopback};
use super::node::NodeNetwork;
use super::patience::Patience;
use super::token::{self, Applicant};

/// Most redirects of one request.
const REDIRECTS_MAX: usize = 5;
/// What is read of an answer that is an error.
const ERROR_BYTES_MAX: u64 = 16 << 10;

/// One request.
#[derive(Debug, Clone)]
pub struct Ask {
    /// GET or HEAD.
    pub method: Method,
    /// Beneath the host's base: `library/busybox/manifests/latest`.
    pub path: String,
    /// What may be answered.
    pub accept: &'static str,
    /// First and last byte.
    pub range: Option<(u64, u64)>,
    /// For errors.
    pub what: String,
}

/// A host, the connections to it, and what it has granted us.
#[derive(Debug)]
pub struct Endpoint {
    options: HostOptions,
    patience: Patience,
    /// The node's network, where it is another one than ours.
    node: Option<Arc<NodeNetwork>>,
    /// Whether somebody listens there at the address; asked once.
    in_node: OnceCell<bool>,
    on_host: Clients,
    inside: Clients,
    /// What worked last.
    authorization: Mutex<Option<HeaderValue>>,
    down: AtomicBool,
}

/// Their connections are of one network.
#[derive(Debug, Default)]
struct Clients {
    /// Without TLS no authorities are read.
    plain: OnceCell<Client>,
    secure: OnceCell<Client>,
}

/// What a request to a URL is made with, and where it is sent from.
#[derive(Debug)]
pub struct Dialler {
    client: Client,
    node: Option<Arc<NodeNetwork>>,
}

impl Dialler {
    /// A request, not sent.
    pub fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends it.
    pub async fn send(&self, request: RequestBuilder, subject: &Subject) -> Result<Response, RegistryError> {
        let sent = match &self.node {
            None => request.send().await,
            Some(node) => {
                let sent = node.run(request.send()).await;
                sent.map_err(|error| subject.unavailable(format!("in the node's network: {error}")))?
            }
        };
        let here = self.node.is_none();
        let host = if here { subject.host.clone() } else { format!("{} in the node's network", subject.host) };
        sent.map_err(|error| Subject { host, what: subject.what.clone() }.transport(error))
    }
}

impl Endpoint {
    /// Nothing is dialled before the first request. `node`: see [`super::node`].
    pub fn new(options: HostOptions, patience: Patience, node: Option<Arc<NodeNetwork>>) -> Self {
        Self {
            options,
            patience,
            node,
            in_node: OnceCell::new(),
            on_host: Clients::default(),
            inside: Clients::default(),
            authorization: Mutex::new(None),
            down: AtomicBool::new(false),
        }
    }

    /// What it may be asked for.
    pub fn options(&self) -> &HostOptions {
        &self.options
    }

    /// Root of its API.
    pub fn base(&self) -> &Url {
        &self.options.base
    }

    /// It did not answer when it was asked last.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Others are asked first from now on.
    pub fn set_down(&self) {
        self.down.store(true, Ordering::Relaxed);
    }

    /// What errors say about a request here.
    pub fn subject(&self, what: &str) -> Subject {
        Subject { host: authority(self.base()), what: what.to_owned() }
    }

    /// Sends a request, and once more with an authorization if it is challenged. Only a success is an `Ok`.
    pub async fn send(&self, ask: &Ask, applicant: &Applicant<'_>) -> Result<Response, RegistryError> {
        let subject = self.subject(&ask.what);
        let granted = self.granted();
        let mut response = self.follow(ask, granted, &subject).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.is_own(response.url()) {
            let challenges = challenges(response.headers());
            if !challenges.is_empty() {
                // Its connection is free again for the next request.
                let _ = self.beginning(response, &subject).await;
                let value = token::answer(self, &challenges, applicant, &subject).await?;
                response = self.follow(ask, Some(value.clone()), &subject).await?;
                let works = response.status() != StatusCode::UNAUTHORIZED;
                *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = works.then_some(value);
            }
        }
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        // What another host says may be somebody's secret: we may have been led there for that.
        let body = if self.is_own(response.url()) { self.beginning(response, &subject).await } else { Vec::new() };
        Err(subject.refused(status, retry_after, &body))
    }

    /// Limits the time of a whole small document.
    pub async fn within_document_time<T>(
        &self,
        subject: &Subject,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        match tokio::time::timeout(self.patience.document, work).await {
            Ok(done) => done,
            Err(_) => Err(subject.unavailable(format!("no whole answer within {:?}", self.patience.document))),
        }
    }

    /// What leads to a URL.
    pub async fn dialler(&self, url: &Url, subject: &Subject) -> Result<Dialler, RegistryError> {
        let is_secure = url.scheme() == "https";
        let node = self.node_of(url).await;
        let clients = if node.is_some() { &self.inside } else { &self.on_host };
        let cell = if is_secure { &clients.secure } else { &clients.plain };
        let connect = self.dial_timeout();
        let client = cell.get_or_try_init(|| connector::client(&self.options, is_secure, connect, subject)).await?;
        Ok(Dialler { client: client.clone(), node })
    }

    fn dial_timeout(&self) -> Duration {
        self.options.dial_timeout.unwrap_or(self.patience.connect)
    }

    /// The node's network, if a URL is dialled there. Of a registry at a loopback address everything at such addresses
    /// is, when the registry is: its token server, and what it redirects to.
    async fn node_of(&self, url: &Url) -> Option<Arc<NodeNetwork>> {
        let node = self.node.as_ref()?;
        let inside = match self.options.network {
            Some(network) => network == DialNetwork::Node,
            // A proxy is reached by the host's network.
            None if self.options.proxy.is_some() || !self.options.is_loopback => false,
            None => url.host_str().is_some_and(is_loopback) && self.is_in_node(node).await,
        };
        inside.then(|| Arc::clone(node))
    }

    async fn is_in_node(&self, node: &NodeNetwork) -> bool {
        let base = &self.options.base;
        let (Some(host), Some(port)) = (base.host_str(), base.port_or_known_default()) else { return false };
        *self.in_node.get_or_init(|| node.has_listener(host, port, self.dial_timeout())).await
    }

    fn granted(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.options.base.origin()
    }

    fn url(&self, ask: &Ask) -> Url {
        let mut url = self.options.base.clone();
        url.set_path(&format!("{}/{}", self.options.base.path().trim_end_matches('/'), ask.path));
        if let Some(registry) = &self.options.mirrors {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }

    async fn follow(
        &self,
        ask: &Ask,
        authorization: Option<HeaderValue>,
        subject: &Subject,
    ) -> Result<Response, RegistryError> {
        let mut url = self.url(ask);
        for _ in 0..=REDIRECTS_MAX {
            let own = self.is_own(&url);
            let mut headers = ask.headers();
            if own {
                headers.extend(self.options.header.clone());
                headers.extend(authorization.clone().map(|value| (AUTHORIZATION, value)));
            }
            let dialler = self.dialler(&url, subject).await?;
            let request = dialler.request(ask.method.clone(), url.clone()).headers(headers);
            let response = match tokio::time::timeout(self.patience.answer, dialler.send(request, subject)).await {
                Ok(response) => response?,
                Err(_) => return Err(subject.unavailable(format!("no answer within {:?}", self.patience.answer))),
            };
            match next_url(&url, &response) {
                None => return Ok(response),
                Some(next) => url = next.map_err(|problem| subject.bad_answer(problem))?,
            }
        }
        Err(subject.bad_answer(format!("more than {REDIRECTS_MAX} redirects")))
    }

    async fn beginning(&self, response: Response, subject: &Subject) -> Vec<u8> {
        let read = self.within_document_time(subject, read_body(response, ERROR_BYTES_MAX, subject));
        read.await.unwrap_or_default()
    }
}

impl Ask {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(self.accept));
        // Bytes are hashed as they come; a helpful proxy must not compress them.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let range = self.range.and_then(|(first, last)| format!("bytes={first}-{last}").parse().ok());
        headers.extend(range.map(|value| (RANGE, value)));
        headers
    }
}

/// Where the answer points, if it points anywhere.
fn next_url(url: &Url, response: &Response) -> Option<Result<Url, &'static str>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok();
    let Some(next) = location.and_then(|text| url.join(text).ok()) else {
        return Some(Err("a redirect to no URL"));
    };
    Some(match (url.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => Ok(next),
        _ => Err("a redirect away from https"),
    })
}

/// In seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let date = time::PrimitiveDateTime::parse(text.trim(), format).ok()?.assume_utc();
    (date - time::OffsetDateTime::now_utc()).try_into().ok()
}

/// The whole body, which must not be longer than `limit`.
pub async fn read_body(mut response: Response, limit: u64, subject: &Subject) -> Result<Vec<u8>, RegistryError> {
    let too_long = || subject.bad_answer(format!("more than {limit} bytes"));
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_long());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| subject.transport(error))? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_from_http_to_https_and_not_back() {
        for (from, status, location, to) in [
            ("https://a/v2/x", 307, "https://b/y?signature=1", Some(Ok("https://b/y?signature=1"))),
            ("https://a/v2/x", 302, "/y", Some(Ok("https://a/y"))),
            ("http://a/v2/x", 301, "https://a/v2/x", Some(Ok("https://a/v2/x"))),
            ("http://a/v2/x", 308, "http://b/", Some(Ok("http://b/"))),
            ("https://a/v2/x", 307, "http://a/v2/x", Some(Err(()))),
            ("http://a/v2/x", 307, "file:///etc/passwd", Some(Err(()))),
            ("http://a/v2/x", 307, "http://[", Some(Err(()))),
            ("https://a/v2/x", 200, "https://b/", None),
            ("https://a/v2/x", 304, "https://b/", None),
        ] {
            let answer = http::Response::builder().status(status).header(LOCATION, location).body("");
            let next = next_url(&from.parse().expect("a URL"), &answer.expect("an answer").into());
            let next = next.as_ref().map(|url| url.as_ref().map(Url::as_str).map_err(|_| ()));
            assert_eq!(next, to, "{location}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        for (text, expected) in [
            ("120", Some(120)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(u64::MAX)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().expect("a value"))]);
            let seconds = retry_after(&headers).map(|d| d.as_secs());
            assert!(
                seconds == expected || expected == Some(u64::MAX) && seconds > Some(1 << 30),
                "{text}: {seconds:?}"
            );
        }
    }
}
