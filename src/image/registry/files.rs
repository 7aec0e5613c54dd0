//! Reads small configuration files: regular ones, up to a limit, without ever blocking on what is none.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest configuration or certificate file.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// The whole file; `None`: there is none. Links are followed: mounted configurations consist of them.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // Looked at before it is opened: opening a device may already do something.
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_file() => return Err(irregular()),
        Ok(_) => {}
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(irregular());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(Some(bytes))
}

fn irregular() -> io::Error {
    io::Error::other("not a regular file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let directory = std::env::temp_dir().join(format!("cricket-files-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = |name: &str| directory.join(name);
        std::fs::write(path("file"), b"text").expect("a file");
        std::os::unix::fs::symlink("file", path("link")).expect("a link");
        std::os::unix::fs::symlink("/dev/zero", path("zero")).expect("a link");
        std::fs::File::create(path("huge")).and_then(|f| f.set_len(1 << 40)).expect("a sparse file");
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        assert_eq!(read(&path("none")).expect("no error"), None);
        assert_eq!(read(&path("link")).expect("no error").as_deref(), Some(b"text".as_slice()));
        for name in ["zero", "huge", "fifo", "."] {
            assert!(read(&path(name)).is_err(), "{name}");
        }
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
