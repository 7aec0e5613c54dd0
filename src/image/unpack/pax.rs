//! PAX records (`LENGTH KEY=VALUE\n`), read strictly: where two readers could disagree, the layer is refused.

use super::error::{UnpackError, quoted};

/// What the records of one `x` header say about the next entry.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// Replaces the header's path.
    pub path: Option<Vec<u8>>,
    /// Replaces the header's link target.
    pub link: Option<Vec<u8>>,
    /// Replaces the header's size.
    pub size: Option<u64>,
    /// Replaces the header's owner.
    pub uid: Option<u64>,
    /// Replaces the header's group.
    pub gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.*`, without that prefix, in order.
    pub sparse: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads the records of an `x` header.
pub fn parse(bytes: &[u8]) -> Result<Records, UnpackError> {
    let mut records = Records::default();
    each(bytes, |key, value| records.take(key, value))?;
    Ok(records)
}

/// Reads a `g` header. Readers differ in whether they obey it, so it may say nothing that would change the tree.
pub fn check_global(bytes: &[u8]) -> Result<(), UnpackError> {
    each(bytes, |key, _| match key {
        b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime" => {
            Err(malformed(format!("a global header sets {} for all entries", quoted(key))))
        }
        _ if key.starts_with(b"GNU.sparse.") || key.starts_with(b"SCHILY.xattr.") => {
            Err(malformed(format!("a global header sets {} for all entries", quoted(key))))
        }
        _ => Ok(()),
    })
}

fn each(mut bytes: &[u8], mut take: impl FnMut(&[u8], &[u8]) -> Result<(), UnpackError>) -> Result<(), UnpackError> {
    while !bytes.is_empty() {
        let (key, value, rest) = record(bytes).ok_or_else(|| malformed("it has a malformed PAX record".into()))?;
        take(key, value)?;
        bytes = rest;
    }
    Ok(())
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(8).position(|b| *b == b' ')?;
    let length = usize::try_from(digits(&bytes[..space])?).ok()?;
    let line = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = line.iter().position(|b| *b == b'=')?;
    (equals > 0).then(|| (&line[..equals], &line[equals + 1..], &bytes[length..]))
}

impl Records {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        let bad = || malformed(format!("its PAX record {} has the bad value {}", quoted(key), quoted(value)));
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.retain(|(known, _)| known != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
        } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
            self.sparse.push((name.to_vec(), value.to_vec()));
        } else if value.is_empty() {
            // An empty value takes an earlier one back.
            self.forget(key);
        } else {
            match key {
                b"path" | b"linkpath" if value.contains(&0) => return Err(bad()),
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(digits(value).ok_or_else(bad)?),
                b"uid" => self.uid = Some(digits(value).ok_or_else(bad)?),
                b"gid" => self.gid = Some(digits(value).ok_or_else(bad)?),
                b"mtime" => self.mtime = Some(seconds(value).ok_or_else(bad)?),
                _ => {}
            }
        }
        Ok(())
    }

    fn forget(&mut self, key: &[u8]) {
        match key {
            b"path" => self.path = None,
            b"linkpath" => self.link = None,
            b"size" => self.size = None,
            b"uid" => self.uid = None,
            b"gid" => self.gid = None,
            b"mtime" => self.mtime = None,
            _ => {}
        }
    }
}

/// Decimal digits and nothing else.
pub fn digits(text: &[u8]) -> Option<u64> {
    let plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    plain.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// `[-]SECONDS[.FRACTION]`, to the nanosecond.
fn seconds(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |b| *b == b'.');
    let whole = i64::try_from(digits(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0, |value, at| value * 10 + fraction.get(at).map_or(0, |b| u32::from(b - b'0')));
    match (negative, nanos) {
        (false, _) => Some((whole, nanos)),
        (true, 0) => Some((-whole, 0)),
        (true, _) => Some((-whole - 1, 1_000_000_000 - nanos)),
    }
}

fn malformed(text: String) -> UnpackError {
    UnpackError::Malformed(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_replace_and_take_back() {
        let records = parse(b"12 path=a/b\n9 size=5\n8 size=\n21 mtime=-1.25000000\n11 path=xy\n").expect("records");
        assert_eq!(records.path.as_deref(), Some(&b"xy"[..]));
        assert_eq!(records.size, None);
        assert_eq!(records.mtime, Some((-2, 750_000_000)));
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for bad in [
            &b"path=a\n"[..],
            b"9 path=a\n9",
            b"99 path=a\n",
            b"10 path=a\n\n",
            b"3 \n",
            b"-9 path=a\n",
            b"+9 path=a\n",
            b"10 path=a\0\n",
            b"10 size=-1\n",
            b"11 uid=0x10\n",
            b"7 path\n",
            b"5 =a\n",
            b"99999999999999999999 path=a\n",
            b"0 path=a\n",
        ] {
            assert!(parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
        assert!(check_global(b"12 path=abc\n").is_err());
        assert!(check_global(b"14 comment=ab\n").is_ok());
    }
}
