//! See lib.rs; filled by its owner.

pub mod beneath;
pub mod overlay;
pub mod removal;
pub mod usage;
