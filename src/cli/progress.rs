//! Progress of a pull or a load: a bar a layer on a terminal, nothing elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::table;
use crate::proto::cricket::{LayerPhase, LayerProgress};

/// Layers that are shown at once; images with more are rare and the rest is only counted by its work.
const BARS: usize = 32;

const STYLE: &str = "{prefix:13} {msg:9} [{bar:30}] {bytes:>10} / {total_bytes}";

/// The bars, or nothing.
pub struct Progress {
    bars: Option<(MultiProgress, HashMap<String, ProgressBar>)>,
}

impl Progress {
    /// Bars on standard error if a person looks at it and they are wanted.
    pub fn new(wanted: bool) -> Self {
        let shown = wanted && std::io::stderr().is_terminal();
        Self { bars: shown.then(|| (MultiProgress::new(), HashMap::new())) }
    }

    /// One layer got further.
    pub fn update(&mut self, layer: &LayerProgress) {
        let Some((screen, bars)) = &mut self.bars else { return };
        if !bars.contains_key(&layer.digest) && bars.len() >= BARS {
            return;
        }
        let bar = bars.entry(layer.digest.clone()).or_insert_with(|| screen.add(new_bar(&layer.digest)));
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
    pub fn finish(self) {
        if let Some((screen, _)) = self.bars {
            let _ = screen.clear();
        }
    }
}

fn new_bar(digest: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(STYLE).expect("the template is well formed").progress_chars("=> ");
    ProgressBar::new(0).with_style(style).with_prefix(table::short_id(digest).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_well_formed() {
        new_bar("sha256:0123456789abcdef").set_message("here");
    }
}
