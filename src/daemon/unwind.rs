//! Around every call. A panic in a handler is one failed call and a line in the log: without this it would end the client's
//! connection with every other call on it. And calls are counted, so that the daemon's end waits for them, not for clients
//! that are silent.

use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// How many calls are under way, their answers included.
#[derive(Debug, Clone, Default)]
pub struct UnderWay(watch::Sender<usize>);

impl UnderWay {
    /// Waits until there is none.
    pub async fn none(&self) {
        // The sender is here, so the channel is open.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }

    fn one(&self) -> One {
        self.0.send_modify(|count| *count += 1);
        One(self.clone())
    }
}

/// A call, until its answer was taken.
struct One(UnderWay);

impl Drop for One {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// Wraps every service of the server.
#[derive(Debug, Clone, Default)]
pub struct CatchPanics(pub UnderWay);

impl<S> Layer<S> for CatchPanics {
    type Service = Caught<S>;
    fn layer(&self, inner: S) -> Caught<S> {
        Caught { inner, under_way: self.0.clone() }
    }
}

/// See [`CatchPanics`].
#[derive(Debug, Clone)]
pub struct Caught<S> {
    inner: S,
    under_way: UnderWay,
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
        let one = self.under_way.one();
        // Handlers share nothing that a panic could leave half changed but what the domain's own tasks guard.
        let call = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            let answer = call.await.unwrap_or_else(|_| {
                let status = Status::internal(format!("{path} failed by a fault in cricket: its log has the place"));
                Ok(status.into_http())
            });
            answer.map(|answer| answer.map(|body| Body::new(body.map_frame(move |frame| (frame, &one).0))))
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
            let body = http_body_util::Full::new(bytes::Bytes::from_static(b"answer"));
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::new(body)))
        });
        let mut caught = CatchPanics::default().layer(service);
        for (path, status) in [("/bad", Some("13")), ("/good", None)] {
            let request = http::Request::builder().uri(path).body(()).expect("a request");
            let response = caught.call(request).await.expect("an answer");
            let header = response.headers().get("grpc-status").map(|value| value.to_str().expect("a number"));
            assert_eq!(header, status, "{path}");
            // Until the answer is taken; that of a panic has no message.
            assert_eq!(*caught.under_way.0.borrow(), usize::from(path == "/good"), "{path}");
            drop(response);
            caught.under_way.none().await;
        }
    }
}
