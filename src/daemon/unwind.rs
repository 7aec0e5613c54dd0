//! A panic in a handler: one failed call and a line in the log. Without this it would end the client's connection
//! with every other call on it.

use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Wraps every service of the server.
#[derive(Debug, Clone, Copy)]
pub struct CatchPanics;

impl<S> Layer<S> for CatchPanics {
    type Service = Caught<S>;
    fn layer(&self, inner: S) -> Caught<S> {
        Caught { inner }
    }
}

/// See [`CatchPanics`].
#[derive(Debug, Clone)]
pub struct Caught<S> {
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Caught<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path().to_owned();
        // Handlers share nothing that a panic could leave half changed but what the domain's own tasks guard.
        let call = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            call.await.unwrap_or_else(|_| {
                let status = Status::internal(format!("{path} failed by a fault in cricket: its log has the place"));
                Ok(status.into_http())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_one_failed_call() {
        let service = tower::service_fn(|request: http::Request<()>| async move {
            assert!(request.uri().path() != "/bad", "on purpose");
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
        });
        let mut caught = CatchPanics.layer(service);
        for (path, status) in [("/bad", Some("13")), ("/good", None)] {
            let request = http::Request::builder().uri(path).body(()).expect("a request");
            let response = caught.call(request).await.expect("an answer");
            let header = response.headers().get("grpc-status").map(|value| value.to_str().expect("a number"));
            assert_eq!(header, status, "{path}");
        }
    }
}
