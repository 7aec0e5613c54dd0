//! HTTP: accepts connections, redeems the token of the path, and upgrades.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::pod::session::Sessions;

use super::token::{Ticket, Tokens};
use super::{port_forward, remote_command, websocket};

/// Connections served at once, sessions included.
const CONNECTIONS: usize = 4096;

/// A client sends its request's head within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a request's head.
const HEAD_LIMIT_BYTES: usize = 16 << 10;

const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

type Answer = Response<Full<Bytes>>;

/// Serves `listener` for ever.
pub async fn accept(listener: TcpListener, tokens: Arc<Tokens>, sessions: Arc<dyn Sessions>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((connection, _)) => {
                let (tokens, sessions) = (Arc::clone(&tokens), Arc::clone(&sessions));
                tokio::spawn(async move {
                    serve(connection, tokens, sessions).await;
                    drop(permit);
                });
            }
            // Out of descriptors, most likely: others must end first.
            Err(error) => {
                tracing::warn!(%error, "streaming server: cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(connection: TcpStream, tokens: Arc<Tokens>, sessions: Arc<dyn Sessions>) {
    let _ = connection.set_nodelay(true);
    let service = service_fn(move |request| {
        let answer = answer(request, &tokens, &sessions);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT_BYTES)
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "streaming server: connection ended");
    }
}

fn refuse(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *answer.status_mut() = status;
    answer
}

/// What the client speaks after the upgrade.
enum Upgrade {
    Spdy { protocol: Option<&'static str> },
    WebSocket { protocol: Option<websocket::Protocol>, accept: String },
}

fn answer(mut request: Request<Incoming>, tokens: &Tokens, sessions: &Arc<dyn Sessions>) -> Answer {
    if request.headers().contains_key(header::ORIGIN) {
        return refuse(StatusCode::FORBIDDEN, "requests from browsers are not served");
    }
    let path = request.uri().path().to_owned();
    let Some((kind, token)) = path.strip_prefix('/').and_then(|p| p.split_once('/')) else {
        return refuse(StatusCode::NOT_FOUND, "no such session");
    };
    let port_forward = kind == "portforward";
    let upgrade = match choose(request.headers(), port_forward) {
        Ok(upgrade) => upgrade,
        Err(answer) => return *answer,
    };
    let ticket = match tokens.redeem(token) {
        Some(ticket) if ticket_kind(&ticket) == kind => ticket,
        _ => {
            return refuse(
                StatusCode::NOT_FOUND,
                "no such session: its token is unknown, spent or older than a minute",
            );
        }
    };
    let switching = switching(&upgrade);
    let upgraded = hyper::upgrade::on(&mut request);
    let sessions = Arc::clone(sessions);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(io) => run(TokioIo::new(io), upgrade, ticket, sessions).await,
            Err(error) => tracing::debug!(%error, "streaming server: the client did not upgrade"),
        }
    });
    switching
}

fn ticket_kind(ticket: &Ticket) -> &'static str {
    match ticket {
        Ticket::Exec(_) => "exec",
        Ticket::Attach(_) => "attach",
        Ticket::PortForward { .. } => "portforward",
    }
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(token))
}

fn listed<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h str> {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|v| !v.is_empty()).collect()
}

fn choose(headers: &HeaderMap, port_forward: bool) -> Result<Upgrade, Box<Answer>> {
    let refuse = |status, text: &str| Err(Box::new(refuse(status, text)));
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return refuse(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or websocket is expected");
    }
    if has_token(headers, header::UPGRADE, "SPDY/3.1") {
        let offered = listed(headers, STREAM_PROTOCOL);
        return match spdy_protocol(&offered, port_forward) {
            Some(protocol) => Ok(Upgrade::Spdy { protocol }),
            None => refuse(StatusCode::FORBIDDEN, "none of the offered stream protocols is served"),
        };
    }
    if has_token(headers, header::UPGRADE, "websocket") {
        let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
            return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
        };
        if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
            return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Version 13 is expected");
        }
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
        let offered = listed(headers, "sec-websocket-protocol");
        return match websocket::Protocol::choose(&offered, port_forward) {
            Some(protocol) => Ok(Upgrade::WebSocket { protocol, accept }),
            None => refuse(StatusCode::BAD_REQUEST, "none of the offered WebSocket protocols is served"),
        };
    }
    refuse(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or websocket is expected")
}

/// `Some(None)`: nothing was offered and the first version of remotecommand, which has no header, is spoken.
fn spdy_protocol(offered: &[&str], port_forward: bool) -> Option<Option<&'static str>> {
    let served: &[&'static str] = if port_forward { &[port_forward::PROTOCOL] } else { remote_command::SPDY_PROTOCOLS };
    if offered.is_empty() {
        return Some(if port_forward { Some(port_forward::PROTOCOL) } else { None });
    }
    served.iter().find(|s| offered.contains(s)).map(|s| Some(*s))
}

fn switching(upgrade: &Upgrade) -> Answer {
    let mut answer = refuse(StatusCode::SWITCHING_PROTOCOLS, "");
    *answer.body_mut() = Full::default();
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    match upgrade {
        Upgrade::Spdy { protocol } => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            if let Some(protocol) = protocol {
                headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
        Upgrade::WebSocket { protocol, accept } => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            if let Ok(accept) = HeaderValue::from_str(accept) {
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            }
            if let Some(protocol) = protocol {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol.name()));
            }
        }
    }
    answer
}

async fn run(io: TokioIo<hyper::upgrade::Upgraded>, upgrade: Upgrade, ticket: Ticket, sessions: Arc<dyn Sessions>) {
    match (upgrade, ticket) {
        (Upgrade::Spdy { .. }, Ticket::PortForward { pod_id, ports }) => {
            port_forward::over_spdy(io, pod_id, ports, sessions).await;
        }
        (Upgrade::Spdy { protocol }, ticket) => {
            remote_command::over_spdy(io, protocol, ticket, sessions).await;
        }
        (Upgrade::WebSocket { .. }, Ticket::PortForward { pod_id, ports }) => {
            port_forward::over_spdy(websocket::tunnel(io).await, pod_id, ports, sessions).await;
        }
        (Upgrade::WebSocket { protocol, .. }, ticket) => {
            remote_command::over_websocket(io, protocol, ticket, sessions).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_offered_protocol_is_spoken() {
        for (offered, port_forward, expected) in [
            (&["v4.channel.k8s.io", "v3.channel.k8s.io"][..], false, Some(Some("v4.channel.k8s.io"))),
            (&["channel.k8s.io", "v2.channel.k8s.io"][..], false, Some(Some("v2.channel.k8s.io"))),
            (&[][..], false, Some(None)),
            (&["v9.channel.k8s.io"][..], false, None),
            (&["portforward.k8s.io"][..], true, Some(Some("portforward.k8s.io"))),
            (&["v4.channel.k8s.io"][..], true, None),
        ] {
            assert_eq!(spdy_protocol(offered, port_forward), expected, "{offered:?}");
        }
    }
}
