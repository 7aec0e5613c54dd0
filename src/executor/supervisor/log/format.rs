//! Placeholder while the surface of `log` is agreed on.
/// Most bytes of content in one log line.
pub const LINE_LIMIT: usize = 16_384;
