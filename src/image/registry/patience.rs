//! How long a registry may take, and how often it is asked again.
//!
//! There is no limit on a whole transfer: a slow line is no error. What has a limit is the wait for the next byte.

use std::future::Future;
use std::time::Duration;

use super::error::RegistryError;
use crate::sys::random;

/// Limits on waiting; tests use shorter ones.
#[derive(Debug, Clone)]
pub struct Patience {
    /// For a connection, unless the host's configuration says otherwise.
    pub connect: Duration,
    /// For the head of an answer.
    pub answer: Duration,
    /// For the next byte of a blob.
    pub stall: Duration,
    /// For a whole manifest, config or token.
    pub document: Duration,
    /// Tries of one request, and of a transfer without a step forward.
    pub attempts: u32,
    /// Before the second try; doubled each time.
    pub first_delay: Duration,
    /// Longest wait between tries, also where a registry asks for more.
    pub longest_delay: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            answer: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            document: Duration::from_secs(120),
            attempts: 5,
            first_delay: Duration::from_millis(200),
            longest_delay: Duration::from_secs(30),
        }
    }
}

impl Patience {
    /// What to wait after the `failures`th failure (from 1). Half of it is by chance, so that many nodes do not come
    /// back at once.
    pub fn delay(&self, failures: u32, retry_after: Option<Duration>) -> Duration {
        let doubled = self.first_delay.saturating_mul(1 << failures.saturating_sub(1).min(16));
        // Without randomness the whole delay is waited: never less.
        let chance = f64::from(u32::from_ne_bytes(random::bytes())) / f64::from(u32::MAX);
        let jittered = doubled.min(self.longest_delay).mul_f64(0.5 + chance / 2.0);
        retry_after.map_or(jittered, |asked| asked.min(self.longest_delay).max(jittered))
    }

    /// Tries until success, a lasting failure, or the last attempt.
    pub async fn persist<T, F, Attempt>(&self, attempts: u32, mut attempt: F) -> Result<T, RegistryError>
    where
        F: FnMut() -> Attempt,
        Attempt: Future<Output = Result<T, RegistryError>>,
    {
        let mut failures = 0;
        loop {
            let error = match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            failures += 1;
            if !error.is_passing() || failures >= attempts {
                return Err(error);
            }
            let delay = self.delay(failures, error.retry_after());
            tracing::debug!(%error, ?delay, "the registry is asked again");
            tokio::time::sleep(delay).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let patience = Patience::default();
        for (failures, least, most) in [(1, 100, 200), (2, 200, 400), (5, 1600, 3200), (40, 15_000, 30_000)] {
            let delay = patience.delay(failures, None).as_millis();
            assert!((least..=most).contains(&delay), "{failures}: {delay}");
        }
        assert!(patience.delay(1, Some(Duration::from_secs(7))) >= Duration::from_secs(7));
        assert_eq!(patience.delay(1, Some(Duration::from_secs(7200))), patience.longest_delay);
    }
}
