//! Memory for what zstd looks back at.
//!
//! A frame says how far back it refers (its window), and whoever decompresses it keeps that much. What images are made
//! with is at most [`FREE_WINDOW_BYTES`]; a frame may ask for [`WINDOW_LIMIT_BYTES`], and a hostile image does so in
//! every layer. So larger windows wait until all of them together fit into [`LARGE_WINDOWS_BYTES`]; who came first is
//! served first. A layer holds at most one grant and asks for none while it has one, so nobody waits for somebody who
//! waits.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A window that needs no grant: the largest that encoders choose unless they are told to spend memory.
pub const FREE_WINDOW_BYTES: u64 = 8 << 20;
/// Largest window, as a power of two: 32 MiB, the most that programs that build images ever ask for, so that a pull
/// stays below 64 MB whatever the image. A frame that wants more is refused.
pub const WINDOW_LOG_LIMIT: u32 = 25;
/// See [`WINDOW_LOG_LIMIT`].
pub const WINDOW_LIMIT_BYTES: u64 = 1 << WINDOW_LOG_LIMIT;
/// All windows above [`FREE_WINDOW_BYTES`] together, of every layer that is being unpacked.
const LARGE_WINDOWS_BYTES: u64 = WINDOW_LIMIT_BYTES;
/// How often who waits looks whether he is still wanted.
const GLANCE: Duration = Duration::from_millis(250);

/// Those of this process.
pub static WINDOWS: Windows = Windows::new();

/// See the module.
#[derive(Debug)]
pub struct Windows {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    used: u64,
    /// Numbers of those who wait, in their order.
    waiting: VecDeque<u64>,
    next: u64,
}

/// So much is taken until it is dropped.
#[derive(Debug)]
pub struct Grant {
    windows: &'static Windows,
    bytes: u64,
}

impl Grant {
    /// How large a window may be.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.windows.state().used -= self.bytes;
        self.windows.changed.notify_all();
    }
}

impl Windows {
    const fn new() -> Self {
        let state = State { used: 0, waiting: VecDeque::new(), next: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for room for a window; none: it `is_wanted` no more. Blocking.
    pub fn grant(&'static self, bytes: u64, mut is_wanted: impl FnMut() -> bool) -> Option<Grant> {
        let bytes = bytes.min(LARGE_WINDOWS_BYTES);
        let mut state = self.state();
        let own = state.next;
        state.next += 1;
        state.waiting.push_back(own);
        loop {
            let is_first = state.waiting.front() == Some(&own);
            let fits = state.used + bytes <= LARGE_WINDOWS_BYTES;
            let given = is_first && fits;
            if given || !is_wanted() {
                state.waiting.retain(|number| *number != own);
                state.used += if given { bytes } else { 0 };
                // The next in turn may fit too.
                self.changed.notify_all();
                return given.then(|| Grant { windows: self, bytes });
            }
            state = self.changed.wait_timeout(state, GLANCE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_windows_wait_their_turn_and_who_is_not_wanted_gives_it_up() {
        static OWN: Windows = Windows::new();
        let half = LARGE_WINDOWS_BYTES / 2;
        let first = OWN.grant(half, || true).expect("room");
        let second = OWN.grant(half, || true).expect("room");
        assert!(OWN.grant(1, || false).is_none(), "all of it is taken");
        let (said, heard) = std::sync::mpsc::channel();
        let large = std::thread::spawn(move || {
            let all = OWN.grant(WINDOW_LIMIT_BYTES * 2, || said.send(()).is_ok());
            all.map(|grant| grant.bytes())
        });
        heard.recv().expect("it waits");
        drop(first);
        heard.recv().expect("half is not enough");
        assert!(OWN.grant(1, || false).is_none(), "somebody was here before");
        drop(second);
        assert_eq!(large.join().expect("no panic"), Some(LARGE_WINDOWS_BYTES));
        assert_eq!(OWN.state().used, 0);
        assert!(OWN.state().waiting.is_empty());
    }
}
