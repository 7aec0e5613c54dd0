//! The listener: `GET /metrics` and nothing else, to a few at a time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::held::Held;
use super::{Calls, MetricsError};
use crate::image::Images;
use crate::pod::Pods;

/// Connections at once; more wait.
const CONNECTIONS_LIMIT: usize = 16;
/// All headers of a request together.
const HEADERS_LIMIT_BYTES: usize = 16 << 10;
/// How long a request's headers may take, and a connection as a whole.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// What is served, in the words of its format.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until `closing` is cancelled.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
}

impl Server {
    /// Binds; an address other than a loopback's is the user's own word, and is told.
    pub async fn start(
        address: SocketAddr,
        calls: &Calls,
        pods: Pods,
        images: Images,
        closing: CancellationToken,
    ) -> Result<Self, MetricsError> {
        let failed = |source| MetricsError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "metrics are served to everybody who reaches this address");
        }
        let mut registry = Registry::default();
        calls.register(&mut registry);
        registry.register_collector(Box::new(Held { pods, images }));
        tokio::spawn(serve(listener, Arc::new(registry), closing));
        tracing::info!("metrics at http://{address}/metrics");
        Ok(Self { address })
    }

    /// With the port that was free.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve(listener: TcpListener, registry: Arc<Registry>, closing: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
    loop {
        // Never closed, so this waits and does not fail.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: others need the processor more.
            tokio::time::sleep(HEADER_TIMEOUT).await;
            continue;
        };
        let (registry, closing) = (Arc::clone(&registry), closing.clone());
        tokio::spawn(async move {
            let _place = place;
            let answer = hyper::service::service_fn(move |request| {
                let answer = answer(&request, &registry);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEADERS_LIMIT_BYTES)
                .serve_connection(TokioIo::new(stream), answer);
            // What a client does wrong is its own.
            tokio::select! {
                _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection) => {}
                () = closing.cancelled() => {}
            }
        });
    }
}

fn answer<B>(request: &Request<B>, registry: &Registry) -> Response<Full<Bytes>> {
    let refused = |status: StatusCode| {
        let mut response = Response::new(Full::new(Bytes::from_static(b"GET /metrics\n")));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return refused(StatusCode::NOT_FOUND);
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return refused(StatusCode::METHOD_NOT_ALLOWED);
    }
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, registry).is_err() {
        return refused(StatusCode::INTERNAL_SERVER_ERROR);
    }
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(FORMAT));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_page_is_served_and_no_other() {
        let registry = Registry::default();
        for (method, path, expected) in [
            (Method::GET, "/metrics", StatusCode::OK),
            (Method::GET, "/metrics?x=y", StatusCode::OK),
            (Method::GET, "/", StatusCode::NOT_FOUND),
            (Method::GET, "/metrics/../etc/passwd", StatusCode::NOT_FOUND),
            (Method::POST, "/metrics", StatusCode::METHOD_NOT_ALLOWED),
        ] {
            let request = Request::builder().method(&method).uri(path).body(()).expect("a request");
            assert_eq!(answer(&request, &registry).status(), expected, "{method} {path}");
        }
    }
}
