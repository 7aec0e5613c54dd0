//! See lib.rs; filled by its owner.

pub mod beneath;
pub mod removal;
