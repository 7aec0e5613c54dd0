//! How far a pull is, told to everybody who waits for it, also to those who came later.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::digest::Digest;
use super::manifest::Descriptor;
use super::{LayerPhase, LayerProgress, ProgressSink};

/// Bytes of a layer between two reports.
const REPORT_STEP_BYTES: u64 = 256 << 10;

/// One pull's layers and listeners.
#[derive(Default)]
pub struct Progress {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    layers: Vec<Layer>,
    sinks: Vec<(u64, ProgressSink)>,
    next_sink: u64,
}

struct Layer {
    digest: Digest,
    now: LayerProgress,
    reported_bytes: u64,
}

/// Reports go on while it lives.
pub struct Watching {
    progress: Arc<Progress>,
    sink: u64,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.progress.lock().sinks.retain(|(id, _)| *id != self.sink);
    }
}

impl Progress {
    /// Tells `sink` what there is and what will be.
    pub fn watch(self: &Arc<Self>, sink: ProgressSink) -> Watching {
        let mut state = self.lock();
        let id = state.next_sink;
        state.next_sink += 1;
        state.layers.iter().for_each(|layer| sink(layer.now.clone()));
        state.sinks.push((id, sink));
        Watching { progress: Arc::clone(self), sink: id }
    }

    /// There is such a layer.
    pub fn add(&self, descriptor: &Descriptor) {
        let now = LayerProgress {
            digest: descriptor.digest.to_string(),
            total_bytes: descriptor.size,
            done_bytes: 0,
            phase: LayerPhase::Waiting,
        };
        let mut state = self.lock();
        if state.layers.iter().any(|layer| layer.digest == descriptor.digest) {
            return;
        }
        state.report(&now);
        state.layers.push(Layer { digest: descriptor.digest.clone(), now, reported_bytes: 0 });
    }

    /// It was here.
    pub fn reused(&self, descriptor: &Descriptor) {
        self.change(descriptor, |layer| layer.now.phase = LayerPhase::Reused);
    }

    /// It is being fetched.
    pub fn begin(&self, descriptor: &Descriptor) {
        self.change(descriptor, |layer| layer.now.phase = LayerPhase::Fetching);
    }

    /// `bytes` more of it have come.
    pub fn advance(&self, descriptor: &Descriptor, bytes: u64) {
        let mut state = self.lock();
        let Some(layer) = state.layers.iter_mut().find(|layer| layer.digest == descriptor.digest) else { return };
        layer.now.done_bytes += bytes;
        if layer.now.done_bytes - layer.reported_bytes >= REPORT_STEP_BYTES {
            layer.reported_bytes = layer.now.done_bytes;
            let now = layer.now.clone();
            state.report(&now);
        }
    }

    /// It is here, whole.
    pub fn done(&self, descriptor: &Descriptor) {
        self.change(descriptor, |layer| {
            layer.now.phase = LayerPhase::Done;
            layer.now.done_bytes = layer.now.total_bytes;
        });
    }

    fn change(&self, descriptor: &Descriptor, change: impl FnOnce(&mut Layer)) {
        let mut state = self.lock();
        let Some(layer) = state.layers.iter_mut().find(|layer| layer.digest == descriptor.digest) else { return };
        change(layer);
        let now = layer.now.clone();
        state.report(&now);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sinks return at once, so they are called with the lock held: nobody sees steps out of order.
    fn report(&self, now: &LayerProgress) {
        self.sinks.iter().for_each(|(_, sink)| sink(now.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::MediaType;

    #[test]
    fn late_watchers_see_where_things_are_and_those_who_left_see_nothing() {
        let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().expect("a digest");
        let descriptor = Descriptor { media_type: MediaType::OciConfig, digest, size: 1 << 20 };
        let progress = Arc::new(Progress::default());
        progress.add(&descriptor);
        progress.begin(&descriptor);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let watching = progress.watch(Arc::new(move |now| {
            sink.lock().expect("no panic").push((now.phase, now.done_bytes));
        }));
        progress.advance(&descriptor, 1000);
        progress.advance(&descriptor, 300_000);
        progress.done(&descriptor);
        drop(watching);
        progress.reused(&descriptor);
        let expected = [(LayerPhase::Fetching, 0), (LayerPhase::Fetching, 301_000), (LayerPhase::Done, 1 << 20)];
        assert_eq!(*seen.lock().expect("no panic"), expected);
    }
}
