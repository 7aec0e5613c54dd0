//! Progress of a pull or a load: a bar a layer and one for all on a terminal, nothing elsewhere; and what it came to.

use std::collections::HashMap;
use std::fmt;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::table;
use crate::proto::cricket::{LayerPhase, LayerProgress};

/// Layers that are shown at once; images with more are rare and the rest is only counted by its work.
const BARS: usize = 32;

const STYLE: &str = "{prefix:13} {msg:9} [{bar:30}] {bytes:>10} / {total_bytes}";
const SUM_STYLE: &str = "{prefix:13} {msg:9} [{bar:30}] {bytes:>10} / {total_bytes}, {bytes_per_sec}";

/// The bars, or nothing; the sums in any case.
pub struct Progress {
    began: Instant,
    layers: HashMap<String, Seen>,
    bars: Option<Bars>,
}

struct Bars {
    screen: MultiProgress,
    sum: ProgressBar,
    layers: HashMap<String, ProgressBar>,
}

#[derive(Clone, Copy)]
struct Seen {
    phase: LayerPhase,
    done: u64,
    total: u64,
}

/// What a pull or a load came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Layers that came.
    pub fetched: usize,
    /// Layers that were here.
    pub reused: usize,
    /// Compressed bytes of those that came.
    pub fetched_bytes: u64,
    /// Compressed bytes of those that were here, where that is known.
    pub reused_bytes: u64,
    /// From the first word to the last.
    pub milliseconds: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if (self.fetched, self.reused) == (0, 0) {
            return f.write_str("nothing was fetched: the image is here");
        }
        let took = Duration::from_millis(self.milliseconds).as_secs_f64();
        let rate = if took > 0.0 { self.fetched_bytes as f64 / took } else { 0.0 };
        let (bytes, rate) = (table::bytes(self.fetched_bytes), table::bytes(rate as u64));
        let (layers, were) =
            (if self.fetched == 1 { "layer" } else { "layers" }, if self.reused == 1 { "was" } else { "were" });
        write!(f, "{} {layers}, {bytes} in {took:.1} s ({rate}/s); {} {were} here", self.fetched, self.reused)
    }
}

impl Progress {
    /// Bars on standard error if a person looks at it and they are wanted.
    pub fn new(wanted: bool) -> Self {
        let shown = wanted && std::io::stderr().is_terminal();
        Self { began: Instant::now(), layers: HashMap::new(), bars: shown.then(Bars::new) }
    }

    /// One layer got further.
    pub fn update(&mut self, layer: &LayerProgress) {
        let seen = Seen { phase: layer.phase(), done: layer.done_bytes, total: layer.total_bytes };
        self.layers.insert(layer.digest.clone(), seen);
        let Some(bars) = &mut self.bars else { return };
        let coming = self.layers.values().filter(|seen| seen.phase != LayerPhase::Reused);
        let (done, total) = coming.fold((0, 0), |(done, total), seen| (done + seen.done, total + seen.total));
        bars.sum.set_length(total);
        bars.sum.set_position(done);
        if !bars.layers.contains_key(&layer.digest) && bars.layers.len() >= BARS {
            return;
        }
        let Bars { screen, sum, layers } = bars;
        let new = || screen.insert_before(sum, new_bar(&layer.digest, STYLE));
        let bar = layers.entry(layer.digest.clone()).or_insert_with(new);
        let (word, finished) = match layer.phase() {
            LayerPhase::Waiting => ("waiting", false),
            LayerPhase::Fetching => ("fetching", false),
            LayerPhase::Reused => ("here", true),
            LayerPhase::Done => ("done", true),
        };
        bar.set_length(layer.total_bytes.max(layer.done_bytes));
        bar.set_position(if finished { layer.total_bytes.max(layer.done_bytes) } else { layer.done_bytes });
        bar.set_message(word);
    }

    /// Takes the bars away.
    pub fn finish(self) -> Totals {
        if let Some(bars) = &self.bars {
            bars.sum.finish_and_clear();
            let _ = bars.screen.clear();
        }
        let milliseconds = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut totals = Totals { milliseconds, ..Totals::default() };
        for seen in self.layers.values() {
            match seen.phase {
                LayerPhase::Reused => {
                    totals.reused += 1;
                    totals.reused_bytes += seen.total;
                }
                LayerPhase::Done => {
                    totals.fetched += 1;
                    totals.fetched_bytes += seen.total;
                }
                // Of a pull that failed, or one that somebody else had begun and not told us all of.
                LayerPhase::Waiting | LayerPhase::Fetching => totals.fetched_bytes += seen.done,
            }
        }
        totals
    }
}

impl Bars {
    fn new() -> Self {
        let screen = MultiProgress::new();
        let sum = screen.add(new_bar("", SUM_STYLE).with_prefix("together"));
        Self { screen, sum, layers: HashMap::new() }
    }
}

fn new_bar(digest: &str, style: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(style).expect("the template is well formed").progress_chars("=> ");
    ProgressBar::new(0).with_style(style).with_prefix(table::short_id(digest).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_well_formed() {
        Bars::new().sum.set_message("here");
        new_bar("sha256:0123456789abcdef", STYLE).set_message("here");
    }

    #[test]
    fn the_sums_tell_what_came_from_what_was_here() {
        let mut progress = Progress::new(false);
        for (digest, done_bytes, phase) in
            [("a", 0, LayerPhase::Fetching), ("a", 7, LayerPhase::Done), ("b", 0, LayerPhase::Reused)]
        {
            let (digest, phase) = (digest.to_owned(), phase.into());
            progress.update(&LayerProgress { digest, total_bytes: 7, done_bytes, phase });
        }
        let totals = progress.finish();
        assert_eq!((totals.fetched, totals.reused, totals.fetched_bytes, totals.reused_bytes), (1, 1, 7, 7));
        let said = Totals { milliseconds: 500, ..totals }.to_string();
        assert_eq!(said, "1 layer, 7 B in 0.5 s (14 B/s); 1 was here");
        assert!(Totals::default().to_string().starts_with("nothing was fetched"));
    }
}
