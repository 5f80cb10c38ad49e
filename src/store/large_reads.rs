//! Expected size of large replies, which [`redis::Node::reserve`](crate::redis::Node::reserve) bounds, and the limit of log pages.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::Error;
use crate::redis::MAX_LARGE_REPLY_BYTES;

/// Maximum size in bytes of a page of the log. A single entry may be larger.
const MAX_PAGE: usize = 512 * 1024;
/// Minimum of the limit of a page and of an expected reply.
const LEAST: usize = 16 * 1024;

/// Expected size of large replies, and the limit of pages.
pub(super) struct LargeReads {
    expected: AtomicUsize,
    page: AtomicUsize,
}

impl LargeReads {
    /// Nothing is known: one reply at a time.
    pub(super) fn new() -> Self {
        LargeReads { expected: AtomicUsize::new(MAX_LARGE_REPLY_BYTES), page: AtomicUsize::new(MAX_PAGE) }
    }

    /// Expected size in bytes of the next large reply: the largest of the last ones. At most [`MAX_LARGE_REPLY_BYTES`].
    pub(super) fn expected(&self) -> usize {
        self.expected.load(Ordering::Relaxed)
    }

    /// Maximum size of the next page in bytes. Half of the last one if that could not be read.
    pub(super) fn page(&self) -> usize {
        self.page.load(Ordering::Relaxed)
    }

    /// Notes the result of a read: the size of the reply in bytes, or its failure.
    pub(super) fn note(&self, read: Result<usize, &Error>) {
        match read {
            Ok(bytes) => {
                let expected = self.expected();
                let faded = expected - expected / 8;
                self.expected.store(bytes.max(faded).clamp(LEAST, MAX_LARGE_REPLY_BYTES), Ordering::Relaxed);
                self.page.store((self.page() * 2).min(MAX_PAGE), Ordering::Relaxed);
            }
            Err(Error::Timeout | Error::Unavailable(_)) => {
                self.expected.store(MAX_LARGE_REPLY_BYTES, Ordering::Relaxed);
                self.page.store((self.page() / 2).max(LEAST), Ordering::Relaxed);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_size_follows_large_replies_and_fades() {
        let reads = LargeReads::new();
        assert_eq!(reads.expected(), MAX_LARGE_REPLY_BYTES, "nothing is known");
        for _ in 0..100 {
            reads.note(Ok(100));
        }
        assert_eq!(reads.expected(), LEAST);
        reads.note(Ok(900_000));
        assert_eq!(reads.expected(), 900_000);
        reads.note(Err(&Error::Timeout));
        assert_eq!(reads.expected(), MAX_LARGE_REPLY_BYTES);
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
