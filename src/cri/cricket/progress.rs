//! Progress of layers on its way to a client: rarely enough not to hold back the work, and dropped when the client
//! does not read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tonic::Status;

use crate::image::{Image, LayerPhase, LayerProgress, ProgressSink};
use crate::proto::cricket as own;

/// Messages that wait for the client; progress beyond that is dropped.
pub const MESSAGES_WAITING: usize = 64;

/// One layer is told of no more often than this, changes of phase apart.
const INTERVAL: Duration = Duration::from_millis(100);

/// A sink that sends into `messages` what `wrap` makes of it.
pub fn sink<M: Send + 'static>(
    messages: mpsc::Sender<Result<M, Status>>,
    wrap: impl Fn(own::LayerProgress) -> M + Send + Sync + 'static,
) -> ProgressSink {
    let told: Mutex<HashMap<String, (LayerPhase, Instant)>> = Mutex::default();
    Arc::new(move |progress: LayerProgress| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |(phase, at): &(LayerPhase, Instant)| *phase == progress.phase && at.elapsed() < INTERVAL;
        if told.get(&progress.digest).is_some_and(fresh) {
            return;
        }
        told.insert(progress.digest.clone(), (progress.phase, Instant::now()));
        let _ = messages.try_send(Ok(wrap(describe(progress))));
    })
}

fn describe(progress: LayerProgress) -> own::LayerProgress {
    let phase = match progress.phase {
        LayerPhase::Waiting => own::LayerPhase::Waiting,
        LayerPhase::Fetching => own::LayerPhase::Fetching,
        LayerPhase::Reused => own::LayerPhase::Reused,
        LayerPhase::Done => own::LayerPhase::Done,
    };
    own::LayerProgress {
        digest: progress.digest,
        total_bytes: progress.total_bytes,
        done_bytes: progress.done_bytes,
        phase: phase.into(),
    }
}

/// An image that is here.
pub fn loaded(image: &Image) -> own::LoadedImage {
    let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
    own::LoadedImage { id: image.id.clone(), names: names.clone(), size_bytes: image.size_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(digest: &str, done_bytes: u64, phase: LayerPhase) -> LayerProgress {
        LayerProgress { digest: digest.to_owned(), total_bytes: 9, done_bytes, phase }
    }

    #[test]
    fn bytes_are_told_rarely_and_phases_always() {
        let (sender, mut receiver) = mpsc::channel(MESSAGES_WAITING);
        let sink = sink(sender, |progress| progress);
        for done in 0..9 {
            sink(progress("a", done, LayerPhase::Fetching));
            sink(progress("b", done, LayerPhase::Fetching));
        }
        sink(progress("a", 9, LayerPhase::Done));
        let mut told = Vec::new();
        while let Ok(message) = receiver.try_recv() {
            let message = message.expect("progress");
            told.push((message.digest.clone(), message.phase()));
        }
        let expected =
            [("a", own::LayerPhase::Fetching), ("b", own::LayerPhase::Fetching), ("a", own::LayerPhase::Done)];
        assert_eq!(told, expected.map(|(digest, phase)| (digest.to_owned(), phase)));
    }

    #[test]
    fn a_client_that_does_not_read_holds_nothing_back() {
        let (sender, _receiver) = mpsc::channel(1);
        let sink = sink(sender, |progress| progress);
        for layer in 0..1000 {
            sink(progress(&layer.to_string(), 0, LayerPhase::Done));
        }
    }
}
