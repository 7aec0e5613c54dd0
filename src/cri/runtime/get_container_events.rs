//! GetContainerEvents: what happens to containers, from the moment of the call, to any number of clients.
//!
//! A client that does not read holds nobody back: once it has missed events its stream ends with Aborted, and it
//! lists and subscribes again.

use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;
use tonic::Status;
use tonic::codegen::BoxStream;

use crate::cri::Services;
use crate::proto::cri::{ContainerEventResponse, GetEventsRequest};

/// See the module; ends when the daemon does.
pub async fn get_container_events(
    services: &Services,
    _request: GetEventsRequest,
) -> Result<BoxStream<ContainerEventResponse>, Status> {
    let events = BroadcastStream::new(services.pods()?.subscribe())
        .map(|event| event.map_err(|missed| Status::aborted(format!("{missed}: list containers and subscribe again"))));
    let closing = services.closing();
    let until_closing = futures_util::StreamExt::take_until(events, async move { closing.cancelled().await });
    Ok(Box::pin(end_after_error(until_closing)))
}

/// The first error is the last item.
fn end_after_error<T: Send + 'static>(
    stream: impl tokio_stream::Stream<Item = Result<T, Status>> + Send + 'static,
) -> impl tokio_stream::Stream<Item = Result<T, Status>> + Send + 'static {
    futures_util::StreamExt::scan(stream, false, |failed, item| {
        let end = std::mem::replace(failed, item.is_err());
        std::future::ready((!end).then_some(item))
    })
}
