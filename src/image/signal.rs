//! STOPSIGNAL as images write it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.

/// Signals by name, with Linux' numbers (the same on every architecture we build for).
const NAMES: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", RTMIN),
];
/// First real-time signal that the C library leaves to programs.
const RTMIN: i32 = 34;
/// Last signal.
const RTMAX: i32 = 64;

/// The signal's number; none: there is no such signal.
pub fn number(text: &str) -> Option<i32> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|number| (1..=RTMAX).contains(number));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let real_time = match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
        (Some(above), _) => RTMIN.checked_add(digits(above)?)?,
        (_, Some(below)) => RTMAX.checked_sub(digits(below)?)?,
        _ if name == "RTMAX" => RTMAX,
        _ => return None,
    };
    (RTMIN..=RTMAX).contains(&real_time).then_some(real_time)
}

fn digits(text: &str) -> Option<i32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn names_and_numbers_are_read() {
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("15", Some(15)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMAX", Some(64)),
            ("RTMIN+31", None),
            ("0", None),
            ("65", None),
            ("99999999999", None),
            ("", None),
            ("SIG", None),
            ("RTMIN+-1", None),
        ] {
            assert_eq!(number(text), expected, "{text:?}");
        }
    }
}
