//! The environment of this process, changed only while it has one thread.

use std::ffi::OsString;

/// Removes every variable but those named.
pub fn keep_only(names: &[&str]) {
    let others: Vec<OsString> = std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| !names.iter().any(|kept| name.as_os_str() == *kept))
        .collect();
    for name in others {
        // SAFETY: the caller is a process with one thread, so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
}
