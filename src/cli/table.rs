//! Tables for people, JSON for programs, and how numbers and times are said.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::Output;
pub use super::output::say;

/// Digits of an id that people are shown.
const SHORT_DIGITS: usize = 13;

/// Prints `items`: as rows under `header`, or as one JSON array.
pub fn print<T: Serialize>(
    output: Output,
    items: &[T],
    header: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> anyhow::Result<()> {
    match output {
        Output::Json => json(&items),
        Output::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
            table.set_header(header.iter().copied());
            table.add_rows(items.iter().map(row));
            for line in table.lines() {
                say(line.trim())?;
            }
            Ok(())
        }
    }
}

/// Prints a value as JSON.
pub fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    say(&serde_json::to_string_pretty(value)?)
}

/// The first digits of an id, without the name of its algorithm.
pub fn short_id(id: &str) -> &str {
    let digits = id.split_once(':').map_or(id, |(_, digits)| digits);
    digits.get(..SHORT_DIGITS).unwrap_or(digits)
}

/// `3 minutes ago`, from nanoseconds since 1970.
pub fn ago(nanoseconds: i64) -> String {
    let Ok(nanoseconds) = u64::try_from(nanoseconds) else { return "-".to_owned() };
    if nanoseconds == 0 {
        return "-".to_owned();
    }
    let then = UNIX_EPOCH + Duration::from_nanos(nanoseconds);
    span(SystemTime::now().duration_since(then).unwrap_or_default())
}

fn span(age: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")];
    let seconds = age.as_secs();
    let Some((size, unit)) = UNITS.iter().find(|(size, _)| seconds >= *size) else { return "now".to_owned() };
    let count = seconds / size;
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// `12.3 MB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_in_their_unit() {
        let cases = [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (999_960, "1.0 MB")];
        for (count, expected) in cases {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn ages_are_said_in_their_largest_unit() {
        let cases =
            [(0, "now"), (1, "1 second ago"), (59, "59 seconds ago"), (60, "1 minute ago"), (7200, "2 hours ago")];
        for (seconds, expected) in cases {
            assert_eq!(span(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(ago(0), "-");
        assert_eq!(ago(-1), "-");
    }

    #[test]
    fn ids_are_shortened_without_their_algorithm() {
        assert_eq!(short_id(&format!("sha256:{}", "ab".repeat(32))), "ababababababa");
        assert_eq!(short_id("abc"), "abc");
    }
}
