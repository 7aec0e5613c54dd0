//! The C library's heap: one arena, and freed memory back to the kernel after large work.
//!
//! glibc gives each thread an arena of its own and keeps what is freed; a daemon that is idle most of its life pays
//! for both in resident memory.

/// Every thread shares one arena. Call before threads are started.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes a setting of the allocator; it takes two integers and touches no memory of ours.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free pages back. May take a millisecond.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim is thread-safe and releases only memory that nobody holds.
    unsafe {
        libc::malloc_trim(0);
    }
}
