//! The client's deadline (`grpc-timeout`): a call that takes longer answers DeadlineExceeded. The library below would
//! answer Cancelled, and whoever hears of it first, client or server, decides what the caller sees.

use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Ours comes before the library's own, which has begun a moment earlier.
const EARLIER: Duration = Duration::from_millis(3);
/// Digits of a `grpc-timeout` (the protocol's own limit).
const DIGITS_MAX: usize = 8;

/// Wraps every service of the server.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines;

impl<S> Layer<S> for Deadlines {
    type Service = Bounded<S>;
    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner }
    }
}

/// See [`Deadlines`].
#[derive(Debug, Clone)]
pub struct Bounded<S> {
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Bounded<S>
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
        let time = request.headers().get("grpc-timeout").and_then(|value| parse(value.to_str().ok()?));
        let path = request.uri().path().to_owned();
        let call = self.inner.call(request);
        let Some(time) = time else { return Box::pin(call) };
        Box::pin(async move {
            tokio::time::timeout(time.saturating_sub(EARLIER), call).await.unwrap_or_else(|_| {
                let text = format!(
                    "{path} was not done within the client's {time:?}; asked again it goes on or finds it done"
                );
                Ok(Status::deadline_exceeded(text).into_http())
            })
        })
    }
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
        let mut bounded = Deadlines.layer(service);
        for (path, header, status) in
            [("/never", "20m", Some("4")), ("/never", "1n", Some("4")), ("/", "3H", None), ("/", "nonsense", None)]
        {
            let request =
                http::Request::builder().uri(path).header("grpc-timeout", header).body(()).expect("a request");
            let response = bounded.call(request).await.expect("an answer");
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
}
