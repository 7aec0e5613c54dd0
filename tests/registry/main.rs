//! Pulling, against a registry that misbehaves on purpose and against a real one.

mod auth;
mod fixture;
mod hostile;
mod mirrors;
mod mock;
mod pulls;
mod real;
mod resume;
mod signatures;
