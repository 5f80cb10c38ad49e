//! Reads with large replies: bounds the bytes that are on their way from one server.
//!
//! Without a bound, heartbeats and small reads wait behind them on a slow line, and Redis closes connections that exceed its
//! `maxmemory-clients`.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    sync::SemaphorePermit,
    time::{Instant, timeout_at},
};

use super::error::{Error, Failure};
use crate::redis::node::Node;

/// Maximum expected size in bytes of all large replies on their way from one server.
pub(crate) const IN_FLIGHT: usize = 1024 * 1024;
/// Maximum size in bytes of a page of the log. A single entry may be larger.
const MAX_PAGE: usize = 512 * 1024;
/// Minimum of the limit of a page and of an expected reply.
const LEAST: usize = 16 * 1024;

/// Expected size of large replies, and the limit of pages.
pub(crate) struct LargeReads {
    expected: AtomicUsize,
    page: AtomicUsize,
}

impl LargeReads {
    /// Nothing is known: one reply at a time.
    pub(crate) fn new() -> Self {
        LargeReads { expected: AtomicUsize::new(IN_FLIGHT), page: AtomicUsize::new(MAX_PAGE) }
    }

    /// Expected size in bytes of the next large reply: the largest of the last ones. At most [`IN_FLIGHT`].
    pub(crate) fn expected(&self) -> usize {
        self.expected.load(Ordering::Relaxed)
    }

    /// Maximum size of the next page in bytes. Half of the last one if that could not be read.
    pub(crate) fn page(&self) -> usize {
        self.page.load(Ordering::Relaxed)
    }

    /// Notes the result of a read: the size of the reply in bytes, or its failure.
    pub(crate) fn note(&self, read: Result<usize, &Error>) {
        match read {
            Ok(bytes) => {
                let expected = self.expected();
                let faded = expected - expected / 8;
                self.expected.store(bytes.max(faded).clamp(LEAST, IN_FLIGHT), Ordering::Relaxed);
                self.page.store((self.page() * 2).min(MAX_PAGE), Ordering::Relaxed);
            }
            Err(Error::Timeout | Error::Unavailable(_)) => {
                self.expected.store(IN_FLIGHT, Ordering::Relaxed);
                self.page.store((self.page() / 2).max(LEAST), Ordering::Relaxed);
            }
            Err(_) => {}
        }
    }
}

impl Node {
    /// Waits until a reply of this size may be on its way, at most until the deadline.
    pub(crate) async fn reserve(&self, bytes: usize, deadline: Instant) -> Result<SemaphorePermit<'_>, Failure> {
        let bytes = bytes.min(IN_FLIGHT) as u32;
        let reserved = timeout_at(deadline, self.large_replies.acquire_many(bytes)).await;
        reserved.ok().and_then(Result::ok).ok_or(Failure::Error(Error::Timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_size_follows_large_replies_and_fades() {
        let reads = LargeReads::new();
        assert_eq!(reads.expected(), IN_FLIGHT, "nothing is known");
        for _ in 0..100 {
            reads.note(Ok(100));
        }
        assert_eq!(reads.expected(), LEAST);
        reads.note(Ok(900_000));
        assert_eq!(reads.expected(), 900_000);
        reads.note(Err(&Error::Timeout));
        assert_eq!(reads.expected(), IN_FLIGHT);
    }

    #[test]
    fn page_limit_halves_with_failures_and_recovers() {
        let reads = LargeReads::new();
        for _ in 0..20 {
            reads.note(Err(&Error::Timeout));
        }
        assert_eq!(reads.page(), LEAST);
        for _ in 0..20 {
            reads.note(Ok(LEAST));
        }
        assert_eq!(reads.page(), MAX_PAGE);
    }
}
