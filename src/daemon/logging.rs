//! The daemon's log: entries with fields where standard error is systemd's journal, else lines to standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::journal::{self, Journal};

/// Starts logging; what panics is logged too, with its place. Twice is once.
pub fn start(filter: &str) {
    let filter = EnvFilter::try_new(ours_only(filter)).unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let journal = journal::is_standard_error().then(Journal::connect).flatten();
    // An error means that a subscriber is there already: the one that counts.
    let _ = match journal {
        Some(journal) => tracing_subscriber::registry().with(filter).with(journal).try_init().is_ok(),
        None => {
            let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
            lines.with_ansi(ansi).try_init().is_ok()
        }
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, "panic: {text}");
    }));
}

/// A bare `debug` or `trace` is meant for us: every HTTP/2 frame would bury the rest. Other modules are named.
fn ours_only(filter: &str) -> String {
    match filter.trim().to_ascii_lowercase().as_str() {
        level @ ("debug" | "trace") => format!("info,cricket={level}"),
        _ => filter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_for_our_own_modules() {
        let cases = [
            ("debug", "info,cricket=debug"),
            (" TRACE", "info,cricket=trace"),
            ("warn", "warn"),
            ("h2=debug,cricket::image=trace", "h2=debug,cricket::image=trace"),
        ];
        for (typed, expected) in cases {
            assert_eq!(ours_only(typed), expected);
        }
    }
}
