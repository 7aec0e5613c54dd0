//! The image service on the real thing: real files, real overlay mounts, as root of the machine or of a user namespace.

mod archives;
mod gnu_tar;
mod layers;
mod properties;
mod saving;
mod security;
mod snapshots;
mod support;
