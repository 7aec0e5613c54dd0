//! See lib.rs; filled by its owner.
