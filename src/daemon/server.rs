//! The gRPC server: message sizes as kubelets know them, and limits against clients that misbehave.

use std::io;
use std::time::Duration;

use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::guard::{Guard, UnderWay};
use super::socket::Connection;
use crate::cri::Services;
use crate::proto::cri::image_service_server::ImageServiceServer;
use crate::proto::cri::runtime_service_server::RuntimeServiceServer;
use crate::proto::cricket::cricket_server::CricketServer;

/// Largest message, both ways: what kubelets and crictl take.
const MESSAGE_BYTES: usize = 16 << 20;

/// Calls at once on one connection.
const STREAMS: u32 = 256;

/// All headers of one call together.
const HEADER_LIST_BYTES: u32 = 64 << 10;

/// Calls that a client may cancel before they were begun.
const RESETS: usize = 64;

/// A client that is silent is asked whether it is there; one that does not answer in time is dropped.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves until `closing`, then until the calls under way have ended.
pub async fn serve(
    connections: impl Stream<Item = io::Result<Connection>> + Send,
    services: Services,
    closing: CancellationToken,
    under_way: UnderWay,
) -> Result<(), tonic::transport::Error> {
    macro_rules! sized {
        ($server:ident) => {
            $server::new(services.clone())
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES)
        };
    }
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .http2_max_local_error_reset_streams(Some(RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(Guard(under_way))
        .add_service(sized!(RuntimeServiceServer))
        .add_service(sized!(ImageServiceServer))
        .add_service(sized!(CricketServer))
        .serve_with_incoming_shutdown(connections, closing.cancelled_owned())
        .await
}
