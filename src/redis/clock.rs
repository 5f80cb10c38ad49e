//! Estimates the clock of a Redis server.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::time::Instant;

/// Estimate of a server's clock, at most one round trip ahead of it. The server read its clock between the request and the
/// reply, which bounds the estimate on both sides; the latest reading wins. Belongs to one connection: the next one may lead to
/// another process.
pub(super) struct Clock {
    origin: Instant,
    /// Server time minus the time since `origin`, in us; [`UNKNOWN`] before the first reading.
    offset: AtomicI64,
}

const UNKNOWN: i64 = i64::MIN;

impl Clock {
    /// Creates an estimate without a reading.
    pub(super) fn new() -> Self {
        Clock { origin: Instant::now(), offset: AtomicI64::new(UNKNOWN) }
    }

    /// Adds a reading in us from the reply to a request sent at `sent`.
    pub(super) fn note(&self, redis_us: u64, sent: Instant) {
        let since = |moment: Instant| moment.saturating_duration_since(self.origin).as_micros() as i64;
        let (least, most) = (redis_us as i64 - since(Instant::now()), redis_us as i64 - since(sent));
        let narrowed = |offset: i64| Some(if offset == UNKNOWN { least } else { offset.clamp(least, most) });
        let _ = self.offset.fetch_update(Ordering::Relaxed, Ordering::Relaxed, narrowed);
    }

    /// Estimated server time in us at a moment. Meaningless if no reading is known.
    pub(super) fn at(&self, moment: Instant) -> u64 {
        let offset = self.offset.load(Ordering::Relaxed);
        (offset.max(0) as u64).saturating_add(moment.saturating_duration_since(self.origin).as_micros() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn estimate_clock_steps_back_and_forth_follows() {
        let clock = Clock::new();
        for now in [1_000, 2_000, 500, 700].map(|seconds| seconds * SECOND) {
            clock.note(now, Instant::now());
            let ahead = clock.at(Instant::now()) as i64 - now as i64;
            assert!((0..100_000).contains(&ahead), "{ahead}");
        }
    }

    #[test]
    fn estimate_slow_reply_is_not_set_back() {
        let clock = Clock::new();
        let sent = clock.origin;
        clock.note(1_000 * SECOND, sent);
        let before = clock.offset.load(Ordering::Relaxed);
        // Redis read its clock at once; the reply arrived half a second later.
        clock.note(1_000 * SECOND, sent - Duration::from_millis(500));
        assert_eq!(clock.offset.load(Ordering::Relaxed), before);
    }
}
