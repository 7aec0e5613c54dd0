//! Around every call:
//!
//! * A client's deadline (`grpc-timeout`) that passes answers DeadlineExceeded. The library below would answer Cancelled,
//!   and whoever hears of it first, client or server, decides what the caller sees.
//! * A panic in a handler is one failed call and a line in the log: without this it would end the client's connection
//!   with every other call on it.
//! * Calls are counted, so that the daemon's end waits for them, not for clients that are silent.

use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Our deadline comes before the library's own, which has begun a moment earlier.
const EARLIER: Duration = Duration::from_millis(3);
/// Digits of a `grpc-timeout` (the protocol's own limit).
const DIGITS_MAX: usize = 8;

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
pub struct Guard(pub UnderWay);

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;
    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, under_way: self.0.clone() }
    }
}

/// See [`Guard`].
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    inner: S,
    under_way: UnderWay,
}

impl<S, B> Service<http::Request<B>> for Guarded<S>
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
        let deadline = request.headers().get("grpc-timeout").and_then(|value| parse(value.to_str().ok()?));
        let path = request.uri().path().to_owned();
        let one = self.under_way.one();
        // Handlers share nothing that a panic could leave half changed but what the domain's own tasks guard.
        let call = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            let answer = match deadline {
                Some(time) => tokio::time::timeout(time.saturating_sub(EARLIER), call).await,
                None => Ok(call.await),
            };
            let answer = answer.unwrap_or_else(|_| Ok(Ok(late(&path, deadline).into_http())));
            let answer = answer.unwrap_or_else(|_| Ok(faulty(&path).into_http()));
            answer.map(|answer| answer.map(|body| Body::new(body.map_frame(move |frame| (frame, &one).0))))
        })
    }
}

fn late(path: &str, deadline: Option<Duration>) -> Status {
    let time = deadline.unwrap_or_default();
    let text = format!("{path} was not done within the client's {time:?}; asked again it goes on or finds it done");
    Status::deadline_exceeded(text)
}

fn faulty(path: &str) -> Status {
    Status::internal(format!("{path} failed by a fault in cricket: its log has the place"))
}

/// `100m`: a number and a unit. What is no such text is the library's to refuse.
fn parse(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > DIGITS_MAX {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 60 * 60),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_is_late_answers_that_its_deadline_passed() {
        let service = tower::service_fn(|request: http::Request<()>| async move {
            if request.uri().path() == "/never" {
                std::future::pending::<()>().await;
            }
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
        });
        let mut guarded = Guard::default().layer(service);
        for (path, header, status) in
            [("/never", "20m", Some("4")), ("/never", "1n", Some("4")), ("/", "3H", None), ("/", "nonsense", None)]
        {
            let request =
                http::Request::builder().uri(path).header("grpc-timeout", header).body(()).expect("a request");
            let response = guarded.call(request).await.expect("an answer");
            let answered = response.headers().get("grpc-status").map(|value| value.to_str().expect("a number"));
            assert_eq!(answered, status, "{path} {header}");
        }
    }

    #[test]
    fn the_protocols_units_are_known() {
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse("7n"), Some(Duration::from_nanos(7)));
        for wrong in ["", "S", "1", "123456789S", "-1S", "1s", "ä"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_one_failed_call() {
        let service = tower::service_fn(|request: http::Request<()>| async move {
            assert!(request.uri().path() != "/bad", "on purpose");
            let body = http_body_util::Full::new(bytes::Bytes::from_static(b"answer"));
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::new(body)))
        });
        let mut guarded = Guard::default().layer(service);
        for (path, status) in [("/bad", Some("13")), ("/good", None)] {
            let request = http::Request::builder().uri(path).body(()).expect("a request");
            let response = guarded.call(request).await.expect("an answer");
            let header = response.headers().get("grpc-status").map(|value| value.to_str().expect("a number"));
            assert_eq!(header, status, "{path}");
            // Until the answer is taken; that of a panic has no message.
            assert_eq!(*guarded.under_way.0.borrow(), usize::from(path == "/good"), "{path}");
            drop(response);
            guarded.under_way.none().await;
        }
    }
}
