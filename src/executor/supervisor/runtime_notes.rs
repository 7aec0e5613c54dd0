//! What the runtime notes before it gives up. Its errors name a stage ("failed to prepare rootfs"); which file and
//! which call it was stands in its events only, most of them of processes that it forks: so they are taken in a memory
//! file that those processes share.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::fault::{Fault, Result};

/// Most that is kept: the first words are the ones that matter.
const LIMIT_BYTES: u64 = 4096;
/// The field that holds an event's text.
const MESSAGE: &str = "message";

/// The memory file.
pub struct Notes(Arc<File>);

impl Notes {
    /// Empty.
    pub fn new() -> Result<Self> {
        let file = rustix::fs::memfd_create("cricket-notes", MemfdFlags::CLOEXEC)
            .map_err(Fault::io("cannot make a memory file"))?;
        Ok(Self(Arc::new(File::from(file))))
    }

    /// Does `work`; what it and its children note is kept.
    pub fn taken<T>(&self, work: impl FnOnce() -> T) -> T {
        tracing::subscriber::with_default(Writer(Arc::clone(&self.0)), work)
    }

    /// The first one: what came after it follows from it.
    pub fn first(&self) -> Option<String> {
        let mut file = &*self.0;
        let mut bytes = Vec::new();
        file.rewind().ok()?;
        file.take(LIMIT_BYTES).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        text.lines().next().filter(|line| !line.is_empty()).map(str::to_owned)
    }
}

struct Writer(Arc<File>);

impl Subscriber for Writer {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        if self.0.metadata().map_or(LIMIT_BYTES, |file| file.len()) >= LIMIT_BYTES {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        // Nobody is there to be told.
        let _ = (&*self.0).write_all(line.finish().as_bytes());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// An event: its text, then its fields.
#[derive(Default)]
struct Line {
    text: String,
    fields: String,
}

impl Line {
    fn finish(self) -> String {
        let line = self.text + &self.fields;
        line.replace('\n', " ") + "\n"
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            MESSAGE => write!(self.text, "{value:?}"),
            name => write!(self.fields, ", {name} {value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_kept_with_its_fields() {
        let notes = Notes::new().expect("a memory file");
        assert_eq!(notes.first(), None);
        notes.taken(|| {
            tracing::info!("not this");
            tracing::error!(path = "/etc", "cannot\nmount");
            tracing::error!("failed");
        });
        assert_eq!(notes.first().as_deref(), Some("cannot mount, path \"/etc\""));
    }

    #[test]
    fn a_flood_is_cut() {
        let notes = Notes::new().expect("a memory file");
        notes.taken(|| (0..10_000).for_each(|number| tracing::error!(number, "again")));
        assert!(notes.0.metadata().expect("its length").len() < 2 * LIMIT_BYTES);
    }
}
