//! Suspensions of the process (SIGSTOP, a suspended operating system): a call that arrived in one has waited for an unknown
//! time, and its client may have given up.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{moment::Moment, session::millis};

/// Interval at which the process notes that it runs.
const TICK: Duration = Duration::from_millis(25);
/// Time without a note that counts as a suspension.
const SHORTEST: Duration = Duration::from_millis(100);
/// Maximum time after a suspension in which calls that arrived during it are still received. After a short suspension it is as
/// long as that.
const SETTLING: Duration = Duration::from_millis(500);

/// When the process was suspended. Times are in ms of a clock that does not stop with the process.
#[derive(Default)]
pub struct Suspensions {
    /// Last time at which the process ran.
    ran_at: AtomicU64,
    /// Begin and end of the last suspension; 0 = none.
    began_at: AtomicU64,
    ended_at: AtomicU64,
}

impl Suspensions {
    /// Creates the state of a process that runs now.
    pub fn new() -> Self {
        let suspensions = Suspensions::default();
        suspensions.ran_at.store(now(), Ordering::Relaxed);
        suspensions
    }

    /// Notes at short intervals that the process runs; never returns.
    pub async fn watch(&self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.note_running(now());
        }
    }

    fn note_running(&self, now: u64) {
        let ran_at = self.ran_at.swap(now, Ordering::Relaxed);
        if now.saturating_sub(ran_at) >= millis(SHORTEST) {
            self.began_at.store(ran_at, Ordering::Relaxed);
            self.ended_at.store(now, Ordering::Release);
        }
    }

    /// Returns the longest time that a call may have waited that is received now.
    pub(super) fn longest_wait(&self) -> Duration {
        self.longest_wait_at(now())
    }

    fn longest_wait_at(&self, now: u64) -> Duration {
        let (ran_at, ended_at) = (self.ran_at.load(Ordering::Relaxed), self.ended_at.load(Ordering::Acquire));
        let began_at = self.began_at.load(Ordering::Relaxed);
        let settling = ended_at.saturating_sub(began_at).min(millis(SETTLING));
        let since = if now.saturating_sub(ran_at) >= millis(SHORTEST) {
            ran_at
        } else if now < ended_at + settling {
            began_at
        } else {
            now
        };
        Duration::from_millis(now.saturating_sub(since))
    }
}

/// Time in ms since the system was started, suspended or not.
fn now() -> u64 {
    Moment::now().since_boot / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_at(suspensions: &Suspensions, now: u64) -> u64 {
        millis(suspensions.longest_wait_at(now))
    }

    #[test]
    fn call_after_a_suspension_may_have_waited_since_its_begin() {
        let suspensions = Suspensions { ran_at: 990.into(), ..Suspensions::default() };
        for now in [1_000, 1_025, 1_060] {
            suspensions.note_running(now);
            assert_eq!(wait_at(&suspensions, now + 20), 0);
        }
        assert_eq!(wait_at(&suspensions, 3_060), 2_000, "received before the process noted that it runs");
        suspensions.note_running(3_061);
        assert_eq!(wait_at(&suspensions, 3_070), 2_010);
        suspensions.note_running(3_086);
        assert_eq!(wait_at(&suspensions, 3_090), 2_030);
        for now in (3_111..3_700).step_by(25) {
            suspensions.note_running(now);
        }
        assert_eq!(wait_at(&suspensions, 3_700), 0, "everything that arrived before the end was received");
    }
}
