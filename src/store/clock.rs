//! What is known of a Redis server's clock.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::time::Instant;

/// An estimate of a server's clock that runs at most a round trip ahead of it. A reading was made between the sending and
/// the answer, which bounds the estimate on both sides; the latest one wins. Belongs to one connection.
pub struct Clock {
    origin: Instant,
    /// The server's time in us less the time since `origin`.
    offset: AtomicI64,
}

const UNKNOWN: i64 = i64::MIN;

impl Clock {
    pub fn new() -> Self {
        Clock { origin: Instant::now(), offset: AtomicI64::new(UNKNOWN) }
    }

    pub fn is_known(&self) -> bool {
        self.offset.load(Ordering::Relaxed) != UNKNOWN
    }

    pub fn note(&self, redis_us: u64, sent: Instant) {
        let since = |moment: Instant| moment.saturating_duration_since(self.origin).as_micros() as i64;
        let (least, most) = (redis_us as i64 - since(Instant::now()), redis_us as i64 - since(sent));
        let narrowed = |offset: i64| Some(if offset == UNKNOWN { least } else { offset.clamp(least, most) });
        let _ = self.offset.fetch_update(Ordering::Relaxed, Ordering::Relaxed, narrowed);
    }

    pub fn forget(&self) {
        self.offset.store(UNKNOWN, Ordering::Relaxed);
    }

    pub fn at(&self, moment: Instant) -> u64 {
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
    fn the_estimate_follows_a_clock_that_steps_back_and_forth() {
        let clock = Clock::new();
        for now in [1_000, 2_000, 500, 700].map(|seconds| seconds * SECOND) {
            clock.note(now, Instant::now());
            let ahead = clock.at(Instant::now()) as i64 - now as i64;
            assert!((0..100_000).contains(&ahead), "{ahead}");
        }
    }

    #[test]
    fn a_slow_answer_does_not_set_the_estimate_back() {
        let clock = Clock::new();
        let sent = clock.origin;
        clock.note(1_000 * SECOND, sent);
        let before = clock.offset.load(Ordering::Relaxed);
        // Read by Redis as soon as it was sent, heard of half a second later.
        clock.note(1_000 * SECOND, sent - Duration::from_millis(500));
        assert_eq!(clock.offset.load(Ordering::Relaxed), before);
    }
}
