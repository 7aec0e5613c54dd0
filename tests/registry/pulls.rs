//! Whole pulls.
