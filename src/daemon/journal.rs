//! The daemon's log in systemd's journal, by the journal's own protocol: the line that a person reads, its level, and
//! each of its fields beside (`journalctl -u cricket CRICKET_POD=ID`, `-p warning`, `-o json`).
//!
//! What the journal does not take is written to standard error, which systemd reads too. The library for it
//! (tracing-journald) sends the bare message as the line: what a line here says of pods and containers would be in the
//! fields alone, where a plain `journalctl` does not show it.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Set by systemd where standard error is the journal: device and inode of the stream.
const STREAM_VARIABLE: &str = "JOURNAL_STREAM";
/// Where it listens (systemd.io/JOURNAL_NATIVE_PROTOCOL).
const SOCKET: &str = "/run/systemd/journal/socket";
/// What `journalctl` shows in front of each line.
const IDENTIFIER: &str = "cricket";
/// In front of our fields' names, which are nobody else's so.
const PREFIX: &str = "CRICKET_";
/// Longest name that the journal takes.
const NAME_BYTES_MAX: usize = 64;
/// Longest value; an entry is one message of a socket.
const VALUE_BYTES_MAX: usize = 16 << 10;
/// Most fields of an entry.
const FIELDS_MAX: usize = 64;

/// Whether standard error is the journal's, as said by who started us and not by who started him.
pub(super) fn is_standard_error() -> bool {
    let Ok(stream) = std::env::var(STREAM_VARIABLE) else { return false };
    let own = rustix::fs::fstat(std::io::stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    own.is_ok_and(|own| own == stream)
}

/// Writes entries.
pub(super) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// `None`: it does not listen.
    pub(super) fn connect() -> Option<Self> {
        // A path of somebody else's is not asked.
        std::fs::metadata(SOCKET).ok().filter(|meta| meta.uid() == 0)?;
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(SOCKET).ok()?;
        Some(Self { socket })
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::of(span.name());
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.list.extend(of_span.list.iter().cloned());
            }
        }
        let metadata = event.metadata();
        let entry = entry(metadata.level(), metadata.target(), &fields);
        if self.socket.send(&entry).is_err() {
            eprintln!("{} {}: {}", metadata.level(), metadata.target(), fields.line());
        }
    }
}

/// What was said with an event or a span.
#[derive(Default)]
struct Fields {
    /// Name of the span, in front of its fields' names.
    span: Option<&'static str>,
    message: String,
    /// Names as a person reads them, and as the journal has them.
    list: Vec<(String, String, String)>,
}

impl Fields {
    fn of(span: &'static str) -> Self {
        Self { span: Some(span), ..Self::default() }
    }

    fn put(&mut self, name: &str, value: String) {
        if name == "message" {
            self.message = value;
        } else if self.list.len() < FIELDS_MAX {
            let name = self.span.map_or_else(|| name.to_owned(), |span| format!("{span}.{name}"));
            let key = key(&name);
            self.list.push((name, key, value));
        }
    }

    /// Message and fields in one line.
    fn line(&self) -> String {
        let mut line = self.message.clone();
        for (name, _, value) in &self.list {
            // Into a text nothing fails.
            let _ = write!(line, " {name}={value}");
        }
        line.trim_start().to_owned()
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field.name(), format!("{value:?}"));
    }
}

/// Capitals, digits and underscores; anything else is none of these.
fn key(name: &str) -> String {
    let plain = name.bytes().map(|b| if b.is_ascii_alphanumeric() { char::from(b.to_ascii_uppercase()) } else { '_' });
    PREFIX.chars().chain(plain).take(NAME_BYTES_MAX).collect()
}

fn entry(level: &Level, target: &str, fields: &Fields) -> Vec<u8> {
    // Of syslog: 3 is an error, 7 is for who looks for one.
    let priority = match *level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    };
    let mut entry = Vec::new();
    for (name, value) in [("PRIORITY", priority), ("SYSLOG_IDENTIFIER", IDENTIFIER), ("CRICKET_TARGET", target)] {
        put(&mut entry, name, value);
    }
    put(&mut entry, "MESSAGE", &fields.line());
    for (_, key, value) in fields.list.iter().take(FIELDS_MAX) {
        put(&mut entry, key, value);
    }
    entry
}

/// With its length, so that a value may have lines.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value.as_bytes()[..value.floor_char_boundary(VALUE_BYTES_MAX)];
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Name and value of each field of an entry.
    fn read(mut entry: &[u8]) -> Vec<(String, String)> {
        let mut list = Vec::new();
        while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
            let (name, rest) = (&entry[..end], &entry[end + 1..]);
            let length = u64::from_le_bytes(rest[..8].try_into().expect("eight bytes")) as usize;
            let value = &rest[8..8 + length];
            list.push((String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into_owned()));
            entry = &rest[8 + length + 1..];
        }
        list
    }

    fn said(speak: impl FnOnce()) -> Vec<(String, String)> {
        let (socket, journal) = UnixDatagram::pair().expect("a pair");
        let subscriber = tracing_subscriber::registry().with(Journal { socket });
        tracing::subscriber::with_default(subscriber, speak);
        let mut buffer = vec![0; 1 << 20];
        let length = journal.recv(&mut buffer).expect("an entry");
        read(&buffer[..length])
    }

    #[test]
    fn an_entry_has_the_line_its_level_and_its_fields_with_those_of_the_call() {
        let fields = said(|| {
            let _call = tracing::info_span!("call", id = 7, rpc = "StopContainer").entered();
            tracing::warn!(container = %"abc", lines = "a\nb", "it does not stop");
        });
        let expected = [
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "cricket"),
            ("CRICKET_TARGET", module_path!()),
            ("MESSAGE", "it does not stop container=abc lines=a\nb call.id=7 call.rpc=StopContainer"),
            ("CRICKET_CONTAINER", "abc"),
            ("CRICKET_LINES", "a\nb"),
            ("CRICKET_CALL_ID", "7"),
            ("CRICKET_CALL_RPC", "StopContainer"),
        ];
        assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        let fields = said(|| tracing::error!(long = "ä".repeat(VALUE_BYTES_MAX), "x"));
        let long = fields.iter().find(|(name, _)| name == "CRICKET_LONG").expect("there");
        assert_eq!(long.1.len(), VALUE_BYTES_MAX);
        assert!(key(&"x".repeat(100)).len() == NAME_BYTES_MAX && key("a.b-c") == "CRICKET_A_B_C");
    }
}
