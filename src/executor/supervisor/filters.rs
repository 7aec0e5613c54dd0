//! Compiled seccomp filters, kept by what they were compiled from: one of a node's profiles is compiled once, every
//! other container with the same profile, and every exec, only loads the program.
//!
//! ```text
//! STATE/seccomp/KEY                              KEY and a program; KEY: hash of profile and compiler
//! STATE/pods/ID/containers/CID/seccomp.filter    the container's own copy of the program, for execs
//! ```
//!
//! A name appears only when its file is whole, and each file has a checksum. What cannot be read is compiled again;
//! what cannot be compiled makes the creation fail. So the store may be emptied at any time.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::fault::{Fault, Result};
use super::runtime::oci;
use super::seccomp::{Filter, STORED_LIMIT_BYTES};

/// A container's filter in its bundle.
const FILTER_FILE: &str = "seccomp.filter";
/// Part of each key: another number where `seccomp.rs` or `compaction.rs` makes something else of the same profile.
const COMPILER: u32 = 2;
/// Filters that are kept; a node has a handful. One more, and the store begins anew.
const FILTERS_LIMIT: usize = 256;

/// The filter of a container whose bundle this is, from the store if it is there. No store: a path without a name.
pub fn provide(profile: &oci::LinuxSeccomp, store: &Path, bundle: &Path) -> Result<Filter> {
    let key = if store.as_os_str().is_empty() { None } else { Some(key(profile)?) };
    let kept = key.as_ref().and_then(|key| kept(store, key));
    let filter = match &kept {
        Some(filter) => filter.clone(),
        None => Filter::compile(profile)?,
    };
    let own = bundle.join(FILTER_FILE);
    fs::write(&own, filter.to_bytes()).map_err(Fault::io(format!("cannot write {}", own.display())))?;
    if let (None, Some(key)) = (kept, key) {
        // For the next one; this container has what it needs.
        let _ = keep(store, &key, &filter);
    }
    Ok(filter)
}

/// The filter of a container that was created with one.
pub fn of_container(bundle: &Path) -> Result<Filter> {
    read(&bundle.join(FILTER_FILE)).map_err(Fault::io("cannot read the container's seccomp filter"))
}

fn key(profile: &oci::LinuxSeccomp) -> Result<String> {
    let profile = serde_json::to_vec(profile).map_err(Fault::because("cannot identify the seccomp profile"))?;
    let version = libseccomp::ScmpVersion::current().map_err(Fault::because("cannot ask libseccomp its version"))?;
    let mut hash = Sha256::new();
    hash.update(format!("{COMPILER} {}.{}.{}\n", version.major, version.minor, version.micro));
    hash.update(profile);
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn kept(store: &Path, key: &str) -> Option<Filter> {
    let bytes = read_bytes(&store.join(key)).ok()?;
    // A file may have got another's name.
    Filter::from_bytes(bytes.strip_prefix(key.as_bytes())?)
}

fn read(path: &Path) -> io::Result<Filter> {
    Filter::from_bytes(&read_bytes(path)?).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(STORED_LIMIT_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Renamed into place, so that the name appears with the whole file; whoever else was faster made the same one.
fn keep(store: &Path, key: &str, filter: &Filter) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(store)?;
    if fs::read_dir(store)?.count() >= FILTERS_LIMIT {
        fs::read_dir(store)?.flatten().try_for_each(|entry| fs::remove_file(entry.path()))?;
    }
    let new = store.join(format!("{key}.{}", std::process::id()));
    fs::write(&new, [key.as_bytes(), &filter.to_bytes()].concat())?;
    fs::rename(new, store.join(key))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

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
        let file = |call: &str| store.join(key(&profile(call)).expect("a key"));

        let filter = provide(&profile("read"), &store, &first).expect("compiled");
        assert_eq!(provide(&profile("read"), &store, &second).expect("loaded"), filter);
        assert_eq!(of_container(&second).expect("there"), filter);

        let other = provide(&profile("write"), &store, &bundle(&base, "other")).expect("compiled");
        assert_ne!(other, filter);
        // What the store holds is what is loaded: a filter under its own name, but not one under another's.
        fs::write(
            file("read"),
            [file("read").file_name().expect("a name").as_encoded_bytes(), &other.to_bytes()].concat(),
        )
        .expect("written");
        assert_eq!(provide(&profile("read"), &store, &second).expect("loaded"), other);
        fs::copy(file("write"), file("read")).expect("copied");
        assert_eq!(provide(&profile("read"), &store, &second).expect("compiled again"), filter);

        fs::write(file("read"), "torn").expect("written");
        assert_eq!(provide(&profile("read"), &store, &second).expect("compiled again"), filter);
        assert_eq!(of_container(&first).expect("a copy of its own"), filter);

        assert_eq!(provide(&profile("read"), Path::new(""), &bundle(&base, "alone")).expect("compiled"), filter);
        fs::remove_dir_all(base).expect("removed");
    }
}
