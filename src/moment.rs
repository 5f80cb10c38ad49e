//! Moments whose differences include the time in which the process, the system or its virtual machine stood still.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment by two clocks: neither counts every kind of standstill alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Time in us since the system was started. Counts while the system sleeps, not while a virtual machine is paused.
    pub since_boot: u64,
    /// Time in us since the epoch. Moves ahead after the pause of a virtual machine, and may be set back.
    pub wall: u64,
}

impl Moment {
    /// Returns the present moment.
    pub fn now() -> Self {
        Moment { since_boot: micros(ClockId::Boottime), wall: micros(ClockId::Realtime) }
    }

    /// Returns the longest time that may have passed since an earlier moment.
    pub fn since(self, earlier: Moment) -> Duration {
        let by_boot = self.since_boot.saturating_sub(earlier.since_boot);
        Duration::from_micros(by_boot.max(self.wall.saturating_sub(earlier.wall)))
    }
}

fn micros(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_the_longer_time_of_both_clocks() {
        let start = Moment { since_boot: 1_000_000, wall: 50_000_000 };
        let after = |since_boot, wall| Moment { since_boot, wall }.since(start);
        assert_eq!(after(1_400_000, 50_400_000), Duration::from_millis(400));
        assert_eq!(after(1_400_000, 55_000_000), Duration::from_secs(5), "the virtual machine was paused");
        assert_eq!(after(6_000_000, 40_000_000), Duration::from_secs(5), "the wall clock was set back");
        assert_eq!(after(900_000, 40_000_000), Duration::ZERO);
    }
}
