//! Single-use tokens: 128 random bits, valid for a minute, 1,000 at once, never logged.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::pod::session::{AttachRequest, ExecRequest};
use crate::sys::random;

use super::StreamingError;

/// 128 bits.
const TOKEN_BYTES: usize = 16;

/// How long a token waits for its client.
const LIFETIME: Duration = Duration::from_secs(60);

/// Tokens out at once.
const LIMIT: usize = 1000;

/// What a token allows, once.
#[derive(Debug, Clone)]
pub enum Ticket {
    /// A command in a container.
    Exec(ExecRequest),
    /// The streams of a container.
    Attach(AttachRequest),
    /// Connections to a pod.
    PortForward {
        /// The pod.
        pod_id: String,
        /// Allowed ports; empty: any.
        ports: Vec<u16>,
    },
}

/// The tokens that are out.
#[derive(Default)]
pub struct Tokens {
    waiting: Mutex<HashMap<String, (Ticket, Instant)>>,
}

impl Tokens {
    /// A token for `ticket`.
    pub fn issue(&self, ticket: Ticket) -> Result<String, StreamingError> {
        self.issue_at(ticket, Instant::now())
    }

    /// What `token` allows; it is spent.
    pub fn redeem(&self, token: &str) -> Option<Ticket> {
        self.redeem_at(token, Instant::now())
    }

    fn issue_at(&self, ticket: Ticket, now: Instant) -> Result<String, StreamingError> {
        let token = URL_SAFE_NO_PAD.encode(random::bytes::<TOKEN_BYTES>());
        let mut waiting = self.waiting.lock().expect("no holder panics");
        if waiting.len() >= LIMIT {
            waiting.retain(|_, (_, expiry)| *expiry > now);
        }
        if waiting.len() >= LIMIT {
            return Err(StreamingError::TooManyTokens(LIMIT));
        }
        waiting.insert(token.clone(), (ticket, now + LIFETIME));
        Ok(token)
    }

    fn redeem_at(&self, token: &str, now: Instant) -> Option<Ticket> {
        let (ticket, expiry) = self.waiting.lock().expect("no holder panics").remove(token)?;
        (expiry > now).then_some(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket::PortForward { pod_id: "p".to_owned(), ports: vec![] }
    }

    #[test]
    fn a_token_is_good_once() {
        let tokens = Tokens::default();
        let token = tokens.issue(ticket()).expect("issued");
        assert!(tokens.redeem("guess").is_none());
        assert!(tokens.redeem(&token).is_some());
        assert!(tokens.redeem(&token).is_none());
    }

    #[test]
    fn a_late_token_is_no_good() {
        let tokens = Tokens::default();
        let now = Instant::now();
        let token = tokens.issue_at(ticket(), now).expect("issued");
        assert!(tokens.redeem_at(&token, now + LIFETIME).is_none());
    }

    #[test]
    fn expired_tokens_make_room_and_live_ones_do_not() {
        let tokens = Tokens::default();
        let now = Instant::now();
        for _ in 0..LIMIT {
            tokens.issue_at(ticket(), now).expect("issued");
        }
        assert!(matches!(tokens.issue_at(ticket(), now), Err(StreamingError::TooManyTokens(LIMIT))));
        assert!(tokens.issue_at(ticket(), now + LIFETIME).is_ok());
    }
}
