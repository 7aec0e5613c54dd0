//! Memory taken from the kernel, and given back, by the page.
//!
//! The heap keeps what was once touched; a pod's process that must cost next to nothing when idle cannot have its large
//! buffers there.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A zeroed region, private or shared with children. It costs memory only where it was written since
/// [`Pages::give_back`].
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    length: usize,
    /// What gives it back.
    advice: i32,
}

impl Pages {
    /// Reserves `length` bytes, a multiple of the page size.
    pub fn new(length: usize) -> io::Result<Self> {
        Self::map(length, libc::MAP_PRIVATE, libc::MADV_DONTNEED)
    }

    /// As [`Pages::new`]; processes that are forked see the same memory. They agree when which of them writes.
    pub fn shared(length: usize) -> io::Result<Self> {
        Self::map(length, libc::MAP_SHARED, libc::MADV_REMOVE)
    }

    fn map(length: usize, kind: i32, advice: i32) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = kind | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: no address is asked for, so that no existing mapping is touched.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        match NonNull::new(address.cast::<u8>()) {
            Some(start) if address != libc::MAP_FAILED => Ok(Self { start, length, advice }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives the memory back to the kernel; the region reads as zeros again.
    pub fn give_back(&mut self) {
        // SAFETY: the region is ours and anonymous, and no reference into it exists beside `&mut self`.
        // An error leaves the pages as they are, which is harmless.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.length, self.advice) };
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped readable from `new` to `drop`, always initialised (zeros), borrowed with self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and writable; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

// SAFETY: the region is plain memory that only this value refers to.
unsafe impl Send for Pages {}

/// Where `byte` first is, found with the C library's vectorised search.
pub fn find_byte(haystack: &[u8], byte: u8) -> Option<usize> {
    // SAFETY: the pointer and the length are those of a live slice.
    let found = unsafe { libc::memchr(haystack.as_ptr().cast(), i32::from(byte), haystack.len()) };
    (!found.is_null()).then(|| found as usize - haystack.as_ptr() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_read_as_zeros_again_after_they_were_given_back() {
        let mut pages = Pages::new(1 << 16).expect("memory");
        pages[70] = 7;
        assert_eq!(pages[70], 7);
        pages.give_back();
        assert!(pages.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_byte_is_found_where_it_first_is() {
        for (haystack, found) in [("", None), ("abc", None), ("\n", Some(0)), ("ab\nc\n", Some(2))] {
            assert_eq!(find_byte(haystack.as_bytes(), b'\n'), found, "{haystack:?}");
        }
    }
}
