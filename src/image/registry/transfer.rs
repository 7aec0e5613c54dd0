//! A blob as one stream of bytes, over as many connections and hosts as it takes.
//!
//! A connection that breaks is made anew and asked for the rest (`Range`); where the host has no ranges, what is there
//! already is read past. A host that fails for good is left for the next one, at the same byte. The stream ends after
//! exactly the descriptor's size, whatever the host would still send. Bytes are not checked here: their reader hashes
//! all of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use http::header::CONTENT_RANGE;
use reqwest::Response;
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use super::endpoint::Endpoint;
use super::error::{RegistryError, Subject};
use super::session::{Need, Session};
use crate::image::manifest::Descriptor;

/// After this much on one connection the next one is made at once; after less, with a pause.
const GOOD_STEP_BYTES: u64 = 64 << 10;
/// How often a blob may begin again from its first byte, on hosts without ranges.
const RESTARTS_MAX: u32 = 8;

/// Where a stream leaves the reason why it ended early; an `io::Error` would hide its kind.
#[derive(Debug, Clone, Default)]
pub struct Failure(Arc<Mutex<Option<RegistryError>>>);

impl Failure {
    /// The reason, once.
    pub fn take(&self) -> Option<RegistryError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, error: RegistryError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

/// The bytes of a blob. Dropping the reader closes the connection.
pub fn blob(session: Arc<Session>, descriptor: Descriptor) -> (impl AsyncRead + Send + Unpin, Failure) {
    let failure = Failure::default();
    let slot = failure.clone();
    let transfer = Transfer::new(session, descriptor);
    let chunks = stream::try_unfold(transfer, move |mut transfer| {
        let slot = slot.clone();
        async move {
            match transfer.next().await {
                Ok(Some(chunk)) => Ok(Some((chunk, transfer))),
                Ok(None) => Ok(None),
                Err(error) => {
                    let shown = std::io::Error::other(error.to_string());
                    slot.set(error);
                    Err(shown)
                }
            }
        }
    });
    (StreamReader::new(Box::pin(chunks)), failure)
}

struct Transfer {
    session: Arc<Session>,
    descriptor: Descriptor,
    /// Not yet failed for good, each with how often it may fail. The order is that of the beginning.
    hosts: Vec<(Arc<Endpoint>, u32)>,
    /// Bytes handed on.
    offset: u64,
    body: Option<Response>,
    /// Bytes of the body that were handed on by an earlier one.
    skip: u64,
    /// Bytes handed on since the last failure.
    step: u64,
    failures: u32,
    restarts: u32,
    /// Hosts that failed for good, and how.
    errors: Vec<RegistryError>,
}

impl Transfer {
    fn new(session: Arc<Session>, descriptor: Descriptor) -> Self {
        let hosts = session.candidates(Need::Pull);
        let (offset, skip, step, failures, restarts) = (0, 0, 0, 0, 0);
        Self { session, descriptor, hosts, offset, body: None, skip, step, failures, restarts, errors: Vec::new() }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while self.offset < self.descriptor.size {
            match self.advance().await {
                Ok(Some(chunk)) => return Ok(Some(chunk)),
                Ok(None) => {}
                Err(error) => self.recover(error).await?,
            }
        }
        Ok(None)
    }

    /// One chunk from the connection there is, or a connection. `None`: call again.
    async fn advance(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let Some((endpoint, _)) = self.hosts.first().cloned() else { return Err(self.session.nobody(Need::Pull)) };
        let Some(body) = &mut self.body else {
            self.body = Some(self.connect(&endpoint).await?);
            return Ok(None);
        };
        let stall = self.session.patience().stall;
        let subject = endpoint.subject(&self.session.blob_ask(&self.descriptor, None).what);
        let mut chunk = match tokio::time::timeout(stall, body.chunk()).await {
            Err(_) => return Err(subject.unavailable(format!("no byte within {stall:?}"))),
            Ok(Err(error)) => return Err(subject.transport(error)),
            Ok(Ok(None)) => {
                let (offset, size) = (self.offset, self.descriptor.size);
                return Err(subject.unavailable(format!("the connection ended after {offset} of {size} bytes")));
            }
            Ok(Ok(Some(chunk))) => chunk,
        };
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        let mut chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
        let rest = self.descriptor.size - self.offset;
        chunk.truncate(usize::try_from(rest).unwrap_or(usize::MAX));
        self.offset += chunk.len() as u64;
        self.step += chunk.len() as u64;
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    /// Asks for what is missing and checks that this is what comes.
    async fn connect(&mut self, endpoint: &Endpoint) -> Result<Response, RegistryError> {
        let size = self.descriptor.size;
        let range = (self.offset > 0).then(|| (self.offset, size - 1));
        let ask = self.session.blob_ask(&self.descriptor, range);
        let subject = endpoint.subject(&ask.what);
        let response = endpoint.send(&ask, &self.session.applicant()).await?;
        let first =
            if response.status() == StatusCode::PARTIAL_CONTENT { first_byte(&response, size, &subject)? } else { 0 };
        if first > self.offset {
            return Err(subject.bad_answer(format!("bytes from {first} instead of {}", self.offset)));
        }
        if response.content_length().is_some_and(|length| length != size - first) {
            return Err(subject.bad_answer(format!("another number of bytes than the {size} of the manifest")));
        }
        self.skip = self.offset - first;
        if self.skip > 0 {
            self.restarts += 1;
            if self.restarts > RESTARTS_MAX {
                return Err(subject.bad_answer("broken connections, and it cannot resume"));
            }
        }
        Ok(response)
    }

    /// Waits for another try, or turns to the next host; an error when there is none.
    async fn recover(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.body = None;
        let Some((endpoint, attempts)) = self.hosts.first().cloned() else { return Err(error) };
        self.failures = if self.step > 0 { 1 } else { self.failures + 1 };
        let step = std::mem::take(&mut self.step);
        if error.is_passing() && self.failures < attempts {
            let delay = match (step, error.retry_after()) {
                (GOOD_STEP_BYTES.., None) => Duration::ZERO,
                (_, asked) => self.session.patience().delay(self.failures, asked),
            };
            tracing::debug!(%error, offset = self.offset, ?delay, "the transfer goes on with another connection");
            tokio::time::sleep(delay).await;
            return Ok(());
        }
        if error.is_passing() {
            endpoint.set_down();
        }
        self.errors.push(error);
        self.hosts.remove(0);
        self.failures = 0;
        match self.hosts.is_empty() {
            false => Ok(()),
            true => Err(RegistryError::of_hosts(std::mem::take(&mut self.errors))),
        }
    }
}

/// Of `Content-Range: bytes FIRST-LAST/TOTAL`, which must go to the blob's end.
fn first_byte(response: &Response, size: u64, subject: &Subject) -> Result<u64, RegistryError> {
    let text = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    parse_range(text, size).ok_or_else(|| subject.bad_answer("a part of the blob that was not asked for"))
}

fn parse_range(text: &str, size: u64) -> Option<u64> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total_fits = total == "*" || total.parse() == Ok(size);
    (total_fits && first <= last && last.checked_add(1) == Some(size)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rest_of_the_blob_is_a_good_range() {
        for (text, first) in [
            ("bytes 5-9/10", Some(5)),
            ("bytes 5-9/*", Some(5)),
            ("bytes 5-8/10", None),
            ("bytes 5-9/11", None),
            ("bytes 9-5/10", None),
            ("bytes 0-18446744073709551615/10", None),
            ("items 5-9/10", None),
            ("", None),
        ] {
            assert_eq!(parse_range(text, 10), first, "{text:?}");
        }
    }
}
