//! See lib.rs; filled by its owner.

/// Memory taken from the kernel, and given back, by the page.
pub mod pages;
