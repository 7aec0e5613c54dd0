//! Compiled seccomp filters, kept by what they were compiled from: one of a node's profiles is compiled once, every other
//! container with the same profile, and every exec, only loads the program.
//!
//! ```text
//! STATE/seccomp/KEY                              a program; KEY: hash of profile and compiler
//! STATE/pods/ID/containers/CID/seccomp.filter    the container's own name for it (a hard link), for execs
//! ```
//!
//! A name appears only when its file is whole, and each file has a checksum. What cannot be read is compiled again; what
//! cannot be compiled makes the creation fail. So the store may be emptied at any time.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::fault::{Fault, Result};
use super::runtime::oci;
use super::seccomp::{Filter, STORED_LIMIT_BYTES};

/// A container's filter in its bundle.
const FILTER_FILE: &str = "seccomp.filter";
/// Part of each key: another number where `seccomp.rs` makes something else of the same profile.
const COMPILER: u32 = 1;
/// Filters that are kept; a node has a handful. One more, and the store begins anew.
const FILTERS_LIMIT: usize = 256;

/// The filter of a container whose bundle this is, from the store if it is there. No store: a path without a name.
pub fn provide(profile: &oci::LinuxSeccomp, store: &Path, bundle: &Path) -> Result<Filter> {
    let own = bundle.join(FILTER_FILE);
    let kept = if store.as_os_str().is_empty() { None } else { Some(store.join(key(profile)?)) };
    if let Some((kept, filter)) = kept.as_ref().and_then(|kept| Some((kept, read(kept).ok()?))) {
        if fs::hard_link(kept, &own).is_err() {
            write(&own, &filter)?;
        }
        return Ok(filter);
    }
    let filter = Filter::compile(profile)?;
    write(&own, &filter)?;
    if let Some(kept) = kept {
        // For the next one; this container has what it needs.
        let _ = keep(&own, store, &kept);
    }
    Ok(filter)
}

/// The filter of a container that was created with one.
pub fn of_container(bundle: &Path) -> Result<Filter> {
    read(&bundle.join(FILTER_FILE)).map_err(Fault::io("cannot read the container's seccomp filter"))
}

fn key(profile: &oci::LinuxSeccomp) -> Result<PathBuf> {
    let profile = serde_json::to_vec(profile).map_err(Fault::because("cannot identify the seccomp profile"))?;
    let version = libseccomp::ScmpVersion::current().map_err(Fault::because("cannot ask libseccomp its version"))?;
    let mut hash = Sha256::new();
    hash.update(format!("{COMPILER} {}.{}.{}\n", version.major, version.minor, version.micro));
    hash.update(profile);
    Ok(PathBuf::from(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

fn read(path: &Path) -> io::Result<Filter> {
    let mut bytes = Vec::new();
    File::open(path)?.take(STORED_LIMIT_BYTES + 1).read_to_end(&mut bytes)?;
    Filter::from_bytes(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))
}

/// A new file: the old one may have more names.
fn write(path: &Path, filter: &Filter) -> Result<()> {
    let _ = fs::remove_file(path);
    fs::write(path, filter.to_bytes()).map_err(Fault::io(format!("cannot write {}", path.display())))
}

/// A link, so that the name appears with the whole file; whoever else was faster made the same one.
fn keep(own: &Path, store: &Path, kept: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(store)?;
    if fs::read_dir(store)?.count() >= FILTERS_LIMIT {
        // Containers have links of their own.
        fs::read_dir(store)?.flatten().try_for_each(|entry| fs::remove_file(entry.path()))?;
    }
    if kept.exists() && read(kept).is_err() {
        fs::remove_file(kept)?;
    }
    fs::hard_link(own, kept)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn profile(call: &str) -> oci::LinuxSeccomp {
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["{call}"],"action":"SCMP_ACT_ALLOW"}}]}}"#
        );
        serde_json::from_str(&text).expect("a profile")
    }

    fn bundle(base: &Path, name: &str) -> PathBuf {
        let bundle = base.join(name);
        fs::create_dir_all(&bundle).expect("a directory");
        bundle
    }

    #[test]
    fn one_profile_is_compiled_once_and_a_damaged_one_again() {
        let base = std::env::temp_dir().join(format!("cricket-filters-{}", std::process::id()));
        let (store, first, second) = (base.join("seccomp"), bundle(&base, "first"), bundle(&base, "second"));
        let inode = |bundle: &Path| fs::metadata(bundle.join(FILTER_FILE)).expect("a filter").ino();

        let filter = provide(&profile("read"), &store, &first).expect("compiled");
        assert_eq!(provide(&profile("read"), &store, &second).expect("loaded"), filter);
        assert_eq!(inode(&first), inode(&second));
        assert_eq!(of_container(&second).expect("there"), filter);

        let other = bundle(&base, "other");
        assert_ne!(provide(&profile("write"), &store, &other).expect("compiled"), filter);
        assert_ne!(inode(&first), inode(&other));

        fs::write(store.join(key(&profile("read")).expect("a key")), "torn").expect("written");
        let after = bundle(&base, "after");
        assert_eq!(provide(&profile("read"), &store, &after).expect("compiled again"), filter);
        assert!(of_container(&first).is_err(), "the same file");
        let last = bundle(&base, "last");
        provide(&profile("read"), &store, &last).expect("loaded");
        assert_eq!(inode(&after), inode(&last));

        let alone = bundle(&base, "alone");
        assert_eq!(provide(&profile("read"), Path::new(""), &alone).expect("compiled"), filter);
        fs::remove_dir_all(base).expect("removed");
    }
}
