//! Pauses between reads that channel messages cause and that find nothing.

use std::time::Duration;

use tokio::time::Instant;

/// Pause after the first read that found nothing; it doubles with each further one.
const FIRST_THROTTLE_PAUSE: Duration = Duration::from_millis(4);

/// Limits the rate of reads that find nothing. Without it a client that publishes messages of its own, of which none is in
/// the log, would cause a read with each of them.
pub(super) struct Throttle {
    longest_pause: Duration,
    pause: Duration,
    free_at: Instant,
}

impl Throttle {
    /// A throttle that permits the first read at once, and pauses at most this long.
    pub(super) fn new(longest_pause: Duration) -> Self {
        Throttle { longest_pause, pause: Duration::ZERO, free_at: Instant::now() }
    }

    /// Time from which the next read is permitted.
    pub(super) fn free_at(&self) -> Instant {
        self.free_at
    }

    /// Whether a read is permitted now.
    pub(super) fn is_free(&self) -> bool {
        Instant::now() >= self.free_at
    }

    /// Notes a read, and whether the message that caused it was of the log.
    pub(super) fn note(&mut self, was_genuine: bool) {
        self.pause =
            if was_genuine { Duration::ZERO } else { (self.pause * 2).clamp(FIRST_THROTTLE_PAUSE, self.longest_pause) };
        self.free_at = Instant::now() + self.pause;
    }
}
