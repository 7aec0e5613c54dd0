//! The last time that each container's and pod's processor time was read: from it the rate, and the promise that a
//! counter never goes back (a sum over processes would, when one ends whose parent does not wait for it).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// A rate over less time than this says nothing; the last one is repeated.
const SHORTEST_NANOSECONDS: i64 = 500_000_000;
const NANOSECONDS_OF_SECOND: u128 = 1_000_000_000;
/// Ids that are kept; beyond them those not read for longest are forgotten.
const SAMPLES_LIMIT: usize = 16_384;

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: i64,
    usage: u64,
    highest: u64,
    rate: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    known: Mutex<HashMap<String, Sample>>,
}

impl Samples {
    /// The counter (never lower than before) and nanoseconds a second since the last time; none at the first.
    pub(crate) fn next(&self, id: &str, at: i64, usage: u64) -> (u64, Option<u64>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = known.get_mut(id) else {
            if known.len() >= SAMPLES_LIMIT {
                forget_oldest(&mut known);
            }
            known.insert(id.to_owned(), Sample { at, usage, highest: usage, rate: None });
            return (usage, None);
        };
        let usage = usage.max(last.highest);
        last.highest = usage;
        let elapsed = at.saturating_sub(last.at);
        if elapsed >= SHORTEST_NANOSECONDS {
            let rate = u128::from(usage - last.usage) * NANOSECONDS_OF_SECOND / elapsed as u128;
            *last = Sample { at, usage, highest: usage, rate: Some(u64::try_from(rate).unwrap_or(u64::MAX)) };
        }
        (usage, last.rate)
    }

    /// It is gone.
    pub(crate) fn forget(&self, id: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

fn forget_oldest(known: &mut HashMap<String, Sample>) {
    let mut times: Vec<i64> = known.values().map(|sample| sample.at).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    known.retain(|_, sample| sample.at > middle);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_rate_is_over_the_time_since_the_last_reading() {
        let samples = Samples::default();
        assert_eq!(samples.next("a", 0, 100), (100, None));
        assert_eq!(samples.next("a", 1, 100), (100, None), "too soon");
        assert_eq!(samples.next("a", 2 * SECOND, 1_000_000_100), (1_000_000_100, Some(500_000_000)));
        assert_eq!(samples.next("a", 2 * SECOND + 1, 1_000_000_200), (1_000_000_200, Some(500_000_000)));
        assert_eq!(samples.next("b", 2 * SECOND, 5), (5, None));
    }

    #[test]
    fn a_counter_never_goes_back() {
        let samples = Samples::default();
        samples.next("a", 0, 100);
        assert_eq!(samples.next("a", SECOND, 40), (100, Some(0)));
        samples.forget("a");
        assert_eq!(samples.next("a", SECOND, 40), (40, None));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let samples = Samples::default();
        for number in 0..2 * SAMPLES_LIMIT {
            samples.next(&number.to_string(), number as i64, 1);
        }
        assert!(samples.known.lock().expect("ours").len() <= SAMPLES_LIMIT);
    }
}
