//! Reading and writing of records; see the module's header for the format.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys::crash::{self, Point};
use crate::sys::kernel;

/// Largest record that is read; a larger file is not one of ours.
const RECORD_LIMIT_BYTES: u64 = 16 << 20;

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("record {path}: cannot {action}: {source}")]
    Io {
        /// The record.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The bytes are no record of this kind, or a newer layout.
    #[error("record {path} cannot be understood: {source}")]
    Malformed {
        /// The record.
        path: PathBuf,
        /// Where it went wrong.
        source: serde_json::Error,
    },
    /// Of a layout that only a later release knows.
    #[error(
        "record {path} is of layout {version}, and this release knows {known}: a newer cricket wrote it, and it is left as it \
         is; go on with that release, or end what it belongs to with it"
    )]
    Newer {
        /// The record.
        path: PathBuf,
        /// Its layout.
        version: u64,
        /// Ours.
        known: u32,
    },
    /// Larger than any record of ours.
    #[error("record {path} is larger than {RECORD_LIMIT_BYTES} bytes")]
    TooLarge {
        /// The record.
        path: PathBuf,
    },
}

impl RecordError {
    fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }

    /// No such record.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// It was written by a later release, and is to be left alone.
    pub fn is_newer(&self) -> bool {
        matches!(self, Self::Newer { .. })
    }

    /// Its bytes are no record: cut short, overwritten, or never ours.
    pub fn is_damaged(&self) -> bool {
        matches!(self, Self::Malformed { .. } | Self::TooLarge { .. })
    }

    /// The disk is full, or something else has run out.
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Self::Io { source, .. } if kernel::is_exhausted(source))
    }

    /// The disk is full (space, inodes or quota).
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Writes `value` as the record `path`, durably. After an error the old record stands.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), RecordError> {
    put(path, value, Lasting::Durable)
}

/// As [`write`], for what a power cut ends anyway: the record outlives every process, and after a power cut it may be
/// the old one, damaged, or missing.
pub fn write_until_power_cut<T: Serialize>(path: &Path, value: &T) -> Result<(), RecordError> {
    put(path, value, Lasting::UntilPowerCut)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasting {
    Durable,
    UntilPowerCut,
}

fn put<T: Serialize>(path: &Path, value: &T, lasting: Lasting) -> Result<(), RecordError> {
    let bytes =
        serde_json::to_vec_pretty(value).map_err(|source| RecordError::Malformed { path: path.to_owned(), source })?;
    let temporary = path.with_extension("tmp");
    let result = write_then_rename(path, &temporary, &bytes, lasting);
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write_then_rename(path: &Path, temporary: &Path, bytes: &[u8], lasting: Lasting) -> Result<(), RecordError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(temporary)
        .map_err(RecordError::io(temporary, "create"))?;
    file.write_all(bytes).map_err(RecordError::io(temporary, "write"))?;
    if lasting == Lasting::Durable {
        file.sync_data().map_err(RecordError::io(temporary, "sync"))?;
    }
    crash::reach(Point::RecordWritten).map_err(RecordError::io(temporary, "write"))?;
    fs::rename(temporary, path).map_err(RecordError::io(path, "rename into place"))?;
    crash::reach(Point::RecordRenamed).map_err(RecordError::io(path, "sync"))?;
    match lasting {
        Lasting::Durable => sync_parent(path),
        Lasting::UntilPowerCut => Ok(()),
    }
}

fn sync_parent(path: &Path) -> Result<(), RecordError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_data()).map_err(RecordError::io(parent, "sync"))
}

/// What every layout has.
#[derive(Deserialize)]
struct Versioned {
    #[serde(default)]
    version: u64,
}

/// Reads the record `path`, whatever its layout.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let bytes = read_bytes(path)?;
    serde_json::from_slice(&bytes).map_err(|source| RecordError::Malformed { path: path.to_owned(), source })
}

/// Reads the record `path`, whose layout is `known` or an earlier one; a later one is an error of its own, also where
/// its fields are not ours.
pub fn read_known<T: DeserializeOwned>(path: &Path, known: u32) -> Result<T, RecordError> {
    let bytes = read_bytes(path)?;
    let malformed = |source| RecordError::Malformed { path: path.to_owned(), source };
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(malformed)?;
    if version > known.into() {
        return Err(RecordError::Newer { path: path.to_owned(), version, known });
    }
    serde_json::from_slice(&bytes).map_err(malformed)
}

/// Moves a damaged record aside, to `NAME.unreadable` beside it, where somebody may look at it; nothing reads it again.
pub fn set_aside(path: &Path) -> Result<PathBuf, RecordError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".unreadable");
    let place = path.with_file_name(name);
    fs::rename(path, &place).map_err(RecordError::io(path, "set aside")).map(|()| place)
}

/// As [`read_known`], of what one can do without: none where it is not there. A damaged record is set aside, and
/// `loss` is said of it; one of a later release is an error.
pub fn read_or_set_aside<T: DeserializeOwned>(path: &Path, known: u32, loss: &str) -> Result<Option<T>, RecordError> {
    let error = match read_known(path, known) {
        Ok(record) => return Ok(Some(record)),
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) if error.is_damaged() => error,
        Err(error) => return Err(error),
    };
    let place = set_aside(path)?;
    tracing::error!(%error, place = %place.display(), "{loss}, its record is set aside");
    Ok(None)
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, RecordError> {
    // NONBLOCK: opening a FIFO must not wait for a writer, or the daemon's start would.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(RecordError::io(path, "open"))?;
    if !file.metadata().map_err(RecordError::io(path, "look at"))?.is_file() {
        return Err(RecordError::io(path, "read")(io::Error::other("it is not a regular file")));
    }
    let mut bytes = Vec::new();
    file.take(RECORD_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(RecordError::io(path, "read"))?;
    if bytes.len() as u64 > RECORD_LIMIT_BYTES {
        return Err(RecordError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Removes the record `path`; that there is none is fine.
pub fn remove(path: &Path) -> Result<(), RecordError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(RecordError::io(path, "remove")(e)),
        _ => Ok(()),
    }
}

/// Every record `name` as an earlier release wrote it: `tests/records/REVISION/NAME`. A layout that is promised to be
/// read is.
#[cfg(test)]
pub fn of_earlier_releases(name: &str) -> Vec<PathBuf> {
    let releases = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/records")).expect("records of releases");
    let found: Vec<_> =
        releases.flatten().map(|release| release.path().join(name)).filter(|path| path.exists()).collect();
    assert!(!found.is_empty(), "no {name}");
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_leaves_no_temporary_file() {
        let dir = std::env::temp_dir().join(format!("cricket-record-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join("pod.json");
        write(&path, &vec![1, 2, 3]).expect("written");
        assert_eq!(read::<Vec<u32>>(&path).expect("read"), [1, 2, 3]);
        assert_eq!(fs::read_dir(&dir).expect("listed").count(), 1);
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn a_record_cut_short_is_malformed_not_empty() {
        let path = std::env::temp_dir().join(format!("cricket-cut-{}.json", std::process::id()));
        fs::write(&path, b"[1, 2").expect("written");
        assert!(matches!(read::<Vec<u32>>(&path), Err(RecordError::Malformed { .. })));
        fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn a_later_layout_is_known_by_its_version_whatever_else_it_has() {
        let path = std::env::temp_dir().join(format!("cricket-later-{}.json", std::process::id()));
        #[derive(Debug, Deserialize)]
        struct Known {
            name: String,
        }
        for (text, name) in [(r#"{"name": "a"}"#, "a"), (r#"{"version": 1, "name": "b", "more": 1}"#, "b")] {
            fs::write(&path, text).expect("written");
            assert_eq!(read_known::<Known>(&path, 1).expect("read").name, name);
        }
        fs::write(&path, r#"{"version": 2, "name": {"first": "c"}}"#).expect("written");
        let error = read_known::<Known>(&path, 1).expect_err("a later one");
        assert!(error.is_newer() && error.to_string().contains("newer cricket"), "{error}");
        for text in ["", "\0\0\0", "[]", "{\"version\": 1}", "{\"version\": -1, \"name\": \"d\"}"] {
            fs::write(&path, text).expect("written");
            assert!(read_known::<Known>(&path, 1).expect_err(text).is_damaged(), "{text:?}");
        }
        let place = set_aside(&path).expect("set aside");
        assert!(place.exists() && read_known::<Known>(&path, 1).expect_err("gone").is_not_found());
        fs::remove_file(place).expect("removed");
    }

    #[test]
    fn a_record_that_is_no_file_is_refused_without_waiting() {
        let path = std::env::temp_dir().join(format!("cricket-fifo-{}.json", std::process::id()));
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
        assert!(matches!(read::<Vec<u32>>(&path), Err(RecordError::Io { .. })));
        fs::remove_file(path).expect("removed");
    }
}
