//! An archive's files, by name, each in a numbered file of ours: no name of the archive becomes a path.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::super::ImageError;
use super::super::layers::{io_error, make_directory};
use super::super::unpack::entries::{Entries, Entry};
use super::super::unpack::error::{UnpackError, quoted};
use super::super::unpack::header::Kind;
use super::super::unpack::stream::{Plain, Wire};
use super::bad;
use crate::store::ContainerId;
use crate::sys::removal::remove_path;

/// Files in one archive.
const FILES_LIMIT: usize = 100_000;
/// Links from name to name that are followed.
const LINKS_LIMIT: usize = 8;
/// Bytes copied at once.
const COPY_BYTES: usize = 128 << 10;
/// What messages call it.
const ARCHIVE: &str = "the archive";

/// A file of the archive.
#[derive(Debug, Clone)]
pub struct Spooled {
    /// Ours.
    pub path: PathBuf,
    /// In bytes.
    pub size: u64,
}

#[derive(Debug)]
enum Named {
    File(Spooled),
    Link(String),
}

/// See the module. Its directory goes with it.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    names: HashMap<String, Named>,
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(e) = remove_path(&self.directory) {
            tracing::warn!("cannot remove {}: {e}; the next start tries again", self.directory.display());
        }
    }
}

impl Spool {
    /// Reads the archive to its end.
    pub fn fill(parent: &Path, wire: Wire) -> Result<Self, ImageError> {
        let directory = parent.join(ContainerId::random().short());
        make_directory(&directory)?;
        let mut spool = Self { directory, names: HashMap::new() };
        spool.read(wire).map_err(|e| e.of(ARCHIVE))?;
        Ok(spool)
    }

    fn read(&mut self, wire: Wire) -> Result<(), UnpackError> {
        let mut entries = Entries::new(Plain::new(wire, None)?);
        while let Some(entry) = entries.next_entry()? {
            if self.names.len() >= FILES_LIMIT {
                return Err(UnpackError::Limit { what: "files in one archive", limit: FILES_LIMIT as u64 });
            }
            let named = match entry.kind {
                Kind::File if entry.pieces.is_none() => Named::File(self.write(&entry, &mut entries)?),
                Kind::HardLink => Named::Link(plain_name("", &entry.link)?),
                Kind::Symlink => {
                    let name = plain_name("", &entry.path)?;
                    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                    Named::Link(plain_name(parent, &entry.link)?)
                }
                _ => continue,
            };
            self.names.insert(plain_name("", &entry.path)?, named);
        }
        // The rest is padding; a writer at the other end of a pipe wants to get rid of it.
        entries.into_reader().verify(None).map(|_| ())
    }

    fn write(&self, entry: &Entry, data: &mut impl Read) -> Result<Spooled, UnpackError> {
        let path = self.directory.join(self.names.len().to_string());
        let error = |source| UnpackError::Write { action: "write", path: quoted(&entry.path), source };
        let mut file = File::create(&path).map_err(error)?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            match data.read(&mut buffer)? {
                0 => return Ok(Spooled { path, size: entry.size }),
                count => file.write_all(&buffer[..count]).map_err(error)?,
            }
        }
    }

    /// The file of that name, through links.
    pub fn find(&self, name: &str) -> Option<&Spooled> {
        let mut name = name;
        for _ in 0..=LINKS_LIMIT {
            match self.names.get(name)? {
                Named::File(file) => return Some(file),
                Named::Link(target) => name = target,
            }
        }
        None
    }

    /// The whole of a small file.
    pub fn read_small(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let file = self.find(name).ok_or_else(|| bad(format!("{ARCHIVE} has no {}", quoted(name.as_bytes()))))?;
        if file.size > limit {
            return Err(bad(format!("{} in {ARCHIVE} is larger than {limit} bytes", quoted(name.as_bytes()))));
        }
        std::fs::read(&file.path).map_err(io_error("read", &file.path))
    }
}

/// Components of `name`, seen from `parent`; what leads above the archive's top is refused.
fn plain_name(parent: &str, name: &[u8]) -> Result<String, UnpackError> {
    let error = || UnpackError::Malformed(format!("it has the strange name {}", quoted(name)));
    let text = std::str::from_utf8(name).map_err(|_| error())?;
    let mut parts: Vec<&str> = parent.split('/').filter(|part| !part.is_empty()).collect();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(error)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_archive() {
        for (parent, name, plain) in [
            ("", "./blobs//sha256/x", Some("blobs/sha256/x")),
            ("a/b", "../c/layer.tar", Some("a/c/layer.tar")),
            ("a", "../../etc", None),
            ("", "..", None),
        ] {
            assert_eq!(plain_name(parent, name.as_bytes()).ok().as_deref(), plain, "{name}");
        }
    }
}
