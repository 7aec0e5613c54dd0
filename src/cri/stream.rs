//! The streaming lists: each item exactly once, in batches, then the end.

use tonic::Status;
use tonic::codegen::BoxStream;

/// Items in one message: 100 of the largest still fit the 16 MiB that clients take.
const BATCH_ITEMS: usize = 100;

/// Sends `items` in batches, each made into a message by `message`.
pub fn batches<Item, Message>(
    items: Vec<Item>,
    message: impl Fn(Vec<Item>) -> Message + Send + 'static,
) -> BoxStream<Message>
where
    Item: Send + 'static,
    Message: Send + 'static,
{
    let mut items = items.into_iter();
    let next = move || {
        let batch: Vec<Item> = items.by_ref().take(BATCH_ITEMS).collect();
        if batch.is_empty() { None } else { Some(Ok::<_, Status>(message(batch))) }
    };
    Box::pin(tokio_stream::iter(std::iter::from_fn(next)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn each_item_comes_once_and_in_order() {
        for count in [0, 1, BATCH_ITEMS, 2 * BATCH_ITEMS + 1] {
            let stream = batches((0..count).collect(), |batch| batch);
            let messages: Vec<Vec<usize>> = stream.map(|m| m.expect("no error")).collect().await;
            assert_eq!(messages.len(), count.div_ceil(BATCH_ITEMS));
            assert_eq!(messages.concat(), (0..count).collect::<Vec<_>>());
        }
    }
}
