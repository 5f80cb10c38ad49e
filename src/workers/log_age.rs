//! Age of log entries by the clock of this process, which holds if the clock of Redis was ahead and was set back: their
//! revisions are in the future then.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Number of marks within the maximum age.
const MARKS: u32 = 16;

/// Last revisions of a log in the past, with the times at which they were read. Each entry up to such a revision was written
/// before that time.
#[derive(Default)]
pub(super) struct LogAge {
    marks: VecDeque<(Instant, u64)>,
}

impl LogAge {
    /// Notes the last revision of the log.
    pub(super) fn note(&mut self, last: u64, now: Instant, max_age: Duration) {
        // History was lost: later entries may have earlier revisions.
        if self.marks.back().is_some_and(|(_, revision)| last < *revision) {
            self.marks.clear();
        }
        if self.marks.back().is_none_or(|(at, _)| now - *at >= max_age / MARKS) {
            self.marks.push_back((now, last));
        }
        // Of the marks beyond the maximum age the newest one is needed.
        while self.marks.get(1).is_some_and(|(at, _)| now - *at >= max_age) {
            self.marks.pop_front();
        }
    }

    /// Revision up to which all entries have exceeded the maximum age. 0: unknown.
    pub(super) fn aged(&self, now: Instant, max_age: Duration) -> u64 {
        self.marks.front().filter(|(at, _)| now - *at >= max_age).map_or(0, |(_, revision)| *revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(16);

    #[test]
    fn aged_returns_the_newest_revision_beyond_the_age() {
        let (start, mut log) = (Instant::now(), LogAge::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in 0..100 {
            log.note(1_000 + seconds, at(seconds), AGE);
            assert_eq!(log.aged(at(seconds), AGE), if seconds < 16 { 0 } else { 1_000 + seconds - 16 });
            assert!(log.marks.len() <= MARKS as usize + 1);
        }
    }

    #[test]
    fn aged_after_a_rollback_forgets_lost_revisions() {
        let (start, mut log) = (Instant::now(), LogAge::default());
        log.note(1_000, start, AGE);
        log.note(900, start + AGE, AGE);
        assert_eq!(log.aged(start + AGE, AGE), 0);
    }
}
