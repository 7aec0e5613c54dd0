//! Records that survive a restart, and the ids that name them.
//!
//! A record is one JSON file `{"version": N, ...}`. It is written to a temporary name in the same directory,
//! synced and renamed; then the directory is synced. So a reader sees the old record or the new one, whole, also
//! after a power cut. What is on disk can be read with `cat`.

mod id;
mod lock;
mod record;

pub use id::{ContainerId, IdError, PodId};
pub use lock::{Lock, LockError};
#[cfg(test)]
pub use record::of_earlier_releases;
pub use record::{RecordError, read, read_known, read_or_set_aside, remove, set_aside, write, write_until_power_cut};
