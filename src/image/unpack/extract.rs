//! Applies a layer's entries to its directory.
//!
//! * An entry replaces what an earlier one of the same layer put in its place; a directory keeps its content.
//! * `.wh.NAME` becomes a whiteout (character device 0:0), `.wh..wh..opq` makes its directory opaque; other `.wh..wh.`
//!   names are bookkeeping of old tools and left out. A whiteout never hides what its own layer has: where the layer
//!   has the directory too, that directory is opaque.
//! * Devices are left out: a container gets its devices from the runtime, never from an image.
//! * A hard link must name a file of the same layer.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, linkat, mkdirat, mkfifoat, openat, statat, symlinkat};
use rustix::io::Errno;

use super::attributes::{self, Owner};
use super::entries::{Entries, Entry};
use super::error::{UnpackError, quoted};
use super::header::Kind;
use super::limits::{Budget, DEFERRED_LIMIT_BYTES};
use super::path::{LayerPath, components};
use super::recipe::Recorder;
use super::tree::{LayerTree, OPAQUE_NAME, WHITEOUT_PREFIX, file_type, is_whiteout};

/// In front of names that are not files.
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
/// File systems give files whole blocks of this size.
const BLOCK_BYTES: u64 = 4096;
/// Bytes copied at once.
const COPY_BYTES: usize = 128 << 10;

/// What came of a layer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// On disk, in whole blocks.
    pub bytes: u64,
    /// Files, directories and the rest.
    pub inodes: u64,
    /// Whether the layer says how the root directory itself is to be.
    pub has_root: bool,
    /// Whether it hides something in a way that overlayfs does not know ([`super::OpaqueMark::Names`]).
    pub hides_by_name: bool,
}

/// See the module.
pub struct Extractor {
    tree: LayerTree,
    budget: Budget,
    extent: Extent,
    /// Times of directories, to be set when nothing more is made in them.
    deferred: Vec<(LayerPath, (i64, u32))>,
    deferred_bytes: usize,
    buffer: Vec<u8>,
    /// Whether the tree holds the contents of every file of the tar.
    complete: bool,
}

impl Extractor {
    /// Into the empty `tree`.
    pub fn new(tree: LayerTree) -> Self {
        let extent = Extent { bytes: BLOCK_BYTES, inodes: 1, has_root: false, hides_by_name: false };
        Self {
            tree,
            budget: Budget::default(),
            extent,
            deferred: Vec::new(),
            deferred_bytes: 0,
            buffer: vec![0; COPY_BYTES],
            complete: true,
        }
    }

    /// Applies every entry, up to the end marker. Also answers whether no content was replaced by a later one.
    pub fn run<R: Read>(mut self, entries: &mut Entries<Recorder<R>>) -> Result<(Extent, bool), UnpackError> {
        while let Some(entry) = entries.next_entry()? {
            self.budget.entry()?;
            self.apply(&entry, entries)?;
        }
        self.set_times();
        self.extent.inodes += self.tree.implicit;
        self.extent.bytes += self.tree.implicit * BLOCK_BYTES;
        self.extent.inodes = self.extent.inodes.saturating_sub(self.tree.gone.inodes);
        self.extent.bytes = self.extent.bytes.saturating_sub(self.tree.gone.bytes);
        self.extent.hides_by_name = self.tree.names > 0;
        Ok((self.extent, self.complete))
    }

    fn apply<R: Read>(&mut self, entry: &Entry, data: &mut Entries<Recorder<R>>) -> Result<(), UnpackError> {
        let path = LayerPath::parse(&entry.path)?;
        Owner::of(entry)?;
        let Some((parent, name)) = path.split() else { return self.root(entry, path) };
        if components(parent).any(|component| component.starts_with(WHITEOUT_PREFIX)) {
            return Err(malformed("passes through a whiteout", entry));
        }
        if name.starts_with(WHITEOUT_PREFIX) {
            return self.whiteout(parent, name, entry);
        }
        if entry.kind == Kind::Device {
            return Ok(());
        }
        let parent = self.tree.parent(parent)?;
        let parent = parent.as_fd();
        if entry.kind != Kind::Directory {
            self.tree.uncover(parent, name)?;
        }
        match entry.kind {
            Kind::Directory => {
                self.directory(parent, name, entry, &path)?;
                return self.tree.uncover_directory(parent, name);
            }
            Kind::Symlink => self.symlink(parent, name, entry)?,
            Kind::HardLink => return self.hard_link(parent, name, entry, &path),
            Kind::Fifo => self.fifo(parent, name, entry)?,
            _ => self.file(parent, name, entry, data)?,
        }
        self.extent.inodes += 1;
        Ok(())
    }

    fn root(&mut self, entry: &Entry, path: LayerPath) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            return Err(malformed("would replace the root directory", entry));
        }
        attributes::apply(self.tree.root(), entry)?;
        self.extent.has_root = true;
        self.defer(path, entry);
        Ok(())
    }

    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        path: &LayerPath,
    ) -> Result<(), UnpackError> {
        match mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => self.count_directory(),
            Err(Errno::EXIST) => self.directory_over(parent, name)?,
            Err(e) => return Err(UnpackError::write("make directory", &entry.path)(e)),
        }
        let directory = open_directory(parent, name, entry)?;
        attributes::apply(directory.as_fd(), entry)?;
        self.defer(path.clone(), entry);
        Ok(())
    }

    fn directory_over(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(UnpackError::write("look at", name))?;
        if file_type(&stat) == FileType::Directory {
            return Ok(());
        }
        if is_whiteout(&stat) {
            return self.tree.make_opaque_directory(parent, name);
        }
        self.complete = false;
        self.tree.unlink(parent, name)?;
        self.count_directory();
        mkdirat(parent, name, Mode::RWXU).map_err(UnpackError::write("make directory", name))
    }

    fn count_directory(&mut self) {
        self.extent.inodes += 1;
        self.extent.bytes += BLOCK_BYTES;
    }

    fn symlink(&mut self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        if entry.link.is_empty() {
            return Err(malformed("is a link to nothing", entry));
        }
        self.replacing(parent, name, "make link", || symlinkat(entry.link.as_slice(), parent, name))?;
        attributes::apply_at(parent, name, entry, None)
    }

    fn fifo(&mut self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        self.replacing(parent, name, "make pipe", || mkfifoat(parent, name, Mode::RUSR))?;
        attributes::apply_at(parent, name, entry, Some(Mode::from_raw_mode(entry.mode)))
    }

    fn hard_link(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        path: &LayerPath,
    ) -> Result<(), UnpackError> {
        let target = LayerPath::parse(&entry.link)?;
        let Some((target_parent, target_name)) = target.split() else {
            return Err(malformed("is a hard link to the root directory", entry));
        };
        if target == *path {
            return Err(malformed("is a hard link to itself", entry));
        }
        let missing = |_| {
            let text =
                format!("{} is a hard link to {}, which the layer has not", quoted(&entry.path), quoted(&entry.link));
            UnpackError::Malformed(text)
        };
        if components(target.as_bytes()).any(|component| component.starts_with(WHITEOUT_PREFIX)) {
            return Err(missing(UnpackError::Stopped));
        }
        let from = self.tree.existing_parent(target_parent).map_err(missing)?;
        let stat = statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing(UnpackError::Stopped))?;
        if file_type(&stat) == FileType::Directory || is_whiteout(&stat) {
            return Err(malformed("is a hard link to what is no file", entry));
        }
        self.replacing(parent, name, "make hard link", || linkat(&from, target_name, parent, name, AtFlags::empty()))
    }

    fn file<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        data: &mut Entries<Recorder<R>>,
    ) -> Result<(), UnpackError> {
        Budget::file(entry.size)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            self.replacing(parent, name, "make file", || openat(parent, name, flags, Mode::RUSR | Mode::WUSR))?;
        let mut file = std::fs::File::from(file);
        let written = match &entry.pieces {
            None => {
                data.reader().begin_file(&entry.path, 0, entry.size)?;
                self.copy(&mut file, data, entry)?
            }
            Some(pieces) => {
                file.set_len(entry.size).map_err(write_error("set size of", entry))?;
                let mut written = 0;
                for piece in pieces {
                    file.seek(SeekFrom::Start(piece.offset)).map_err(write_error("write", entry))?;
                    data.reader().begin_file(&entry.path, piece.offset, piece.length)?;
                    written += self.copy(&mut file, &mut data.by_ref().take(piece.length), entry)?;
                }
                written
            }
        };
        data.reader().end_file();
        self.extent.bytes += written.div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
        attributes::apply(file.as_fd(), entry)
    }

    fn copy(&mut self, file: &mut std::fs::File, data: &mut impl Read, entry: &Entry) -> Result<u64, UnpackError> {
        let mut written = 0;
        loop {
            let mut filled = 0;
            // Decompressors give small pieces; the file gets large ones.
            while filled < self.buffer.len() {
                match data.read(&mut self.buffer[filled..])? {
                    0 => break,
                    count => filled += count,
                }
            }
            if filled == 0 {
                return Ok(written);
            }
            file.write_all(&self.buffer[..filled]).map_err(write_error("write", entry))?;
            written += filled as u64;
        }
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        if name == OPAQUE_NAME {
            self.tree.parent(parent)?;
            let directory = self.tree.existing_parent(parent)?;
            let directory = open_directory(directory.as_fd(), b".", entry)?;
            return self.tree.set_opaque(directory.as_fd(), &entry.path);
        }
        if name.starts_with(WHITEOUT_META_PREFIX) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT_PREFIX.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(malformed("is a whiteout of nothing", entry));
        }
        let parent = self.tree.parent(parent)?;
        match statat(parent.as_fd(), hidden, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if file_type(&stat) == FileType::Directory => {
                let directory = open_directory(parent.as_fd(), hidden, entry)?;
                self.tree.set_opaque(directory.as_fd(), &entry.path)
            }
            // The layer's own file hides what is below by itself.
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                self.extent.inodes += 1;
                self.tree.make_whiteout(parent.as_fd(), hidden)
            }
            Err(e) => Err(UnpackError::write("look at", &entry.path)(e)),
        }
    }

    /// Does `make`; where something stands in its place, once more without it.
    fn replacing<T>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        action: &'static str,
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, UnpackError> {
        let mut result = make();
        if matches!(result, Err(Errno::EXIST)) {
            self.complete = false;
            self.tree.remove(parent, name)?;
            result = make();
        }
        result.map_err(UnpackError::write(action, name))
    }

    fn defer(&mut self, path: LayerPath, entry: &Entry) {
        self.deferred_bytes += path.as_bytes().len() + size_of::<(LayerPath, (i64, u32))>();
        self.deferred.push((path, entry.mtime));
        if self.deferred_bytes > DEFERRED_LIMIT_BYTES {
            self.set_times();
        }
    }

    fn set_times(&mut self) {
        for (path, mtime) in self.deferred.drain(..) {
            if let Some(directory) = self.tree.directory(&path) {
                attributes::set_time(directory, mtime);
            }
        }
        self.deferred_bytes = 0;
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<OwnedFd, UnpackError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty()).map_err(UnpackError::write("open directory", &entry.path))
}

fn write_error(action: &'static str, entry: &Entry) -> impl FnOnce(std::io::Error) -> UnpackError {
    let path = quoted(&entry.path);
    move |source| UnpackError::Write { action, path, source }
}

fn malformed(what: &str, entry: &Entry) -> UnpackError {
    UnpackError::Malformed(format!("{} {what}", quoted(&entry.path)))
}
