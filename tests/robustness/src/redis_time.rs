//! Relates the clock of Redis, which a fault may step, to the clock of the recording.

use std::collections::HashMap;

use crate::ground_truth::{Entry, Position};
use crate::history::{Control, History, Micros};

/// Time after a step ahead by which every server reads the new clock.
const NOTICE_DELAY: Micros = 1_000_000;

/// A step of the clock of Redis.
#[derive(Clone, Debug)]
pub struct ClockStep {
    /// Time before the step, and before the logs were read up to `ends`.
    pub from: Micros,
    /// Time after which Redis shows the new clock only.
    pub until: Micros,
    /// Size in µs. Negative: the clock is set back.
    pub by: i64,
    /// Position of the last entry of each log before the step. Entries after it may be written before the step too.
    pub ends: Vec<Position>,
}

impl ClockStep {
    /// Returns the time of the recording at which the clock showed this time. The clock was set back.
    fn recording_time(&self, shown: Micros) -> Micros {
        // The step is longer than the recording.
        let is_old = shown >= self.from.saturating_add_signed(self.by / 2);
        if is_old { shown } else { shown.saturating_add_signed(-self.by) }
    }

    /// Returns the least and the greatest time that the clock shows at this time, if it shows only the new time from `until`.
    fn shown(&self, at: Micros, until: Micros) -> [Micros; 2] {
        let new = at.saturating_add_signed(self.by);
        if at < self.from {
            [at, at]
        } else if at < until {
            [at.min(new), at.max(new)]
        } else {
            [new, new]
        }
    }
}

impl History {
    /// Returns the step of the clock of Redis. None: it did not step.
    pub fn clock_step(&self) -> Option<&ClockStep> {
        self.faults.iter().find_map(|fault| fault.trace.clock_step.as_ref())
    }

    /// Returns the least and the greatest time that the clock of Redis shows at this time of the recording.
    pub fn redis_time(&self, at: Micros) -> [Micros; 2] {
        self.clock_step().map_or([at, at], |step| step.shown(at, step.until))
    }

    /// Returns the least time that a server takes for the clock of Redis at this time of the recording.
    pub fn noticed_redis_time(&self, at: Micros) -> Micros {
        self.clock_step().map_or(at, |step| step.shown(at, step.until + NOTICE_DELAY)[0])
    }

    /// Returns the first time of the recording at which the clock of Redis may show `shown` or a later time.
    pub fn first_time_of(&self, shown: Micros) -> Micros {
        match self.clock_step() {
            Some(step) if step.by > 0 && shown > step.from => {
                step.from.max(shown.saturating_add_signed(-step.by)).min(shown)
            }
            Some(step) if step.by < 0 && shown > step.until => shown.saturating_add_signed(-step.by),
            _ => shown,
        }
    }
}

/// Times of the recording between which the entries of the present store were written.
pub struct WriteTimes<'a> {
    history: &'a History,
    /// Times of entries whose revision is not their time: the clock was set back, and revisions stay ahead of it.
    ahead: HashMap<Position, [Micros; 2]>,
}

impl<'a> WriteTimes<'a> {
    /// Computes the times of all entries.
    pub fn of(history: &'a History) -> Self {
        let set_back = history.clock_step().filter(|step| step.by < 0);
        WriteTimes { history, ahead: set_back.map_or_else(HashMap::new, |step| after_set_back(history, step)) }
    }

    /// Returns the times between which this entry was written.
    pub fn of_entry(&self, entry: &Entry) -> [Micros; 2] {
        let shown = entry.position.time();
        self.ahead.get(&entry.position).copied().unwrap_or_else(|| match self.history.clock_step() {
            Some(step) if step.by > 0 && shown >= step.from.saturating_add_signed(step.by) => {
                [shown.saturating_add_signed(-step.by); 2]
            }
            _ => [shown; 2],
        })
    }

    /// Returns whether this entry was written before a bookmark with this `as_of`, which then covers it.
    pub fn is_covered(&self, entry: &Entry, as_of: Micros) -> bool {
        match (self.ahead.get(&entry.position), self.history.clock_step()) {
            (Some([_, until]), Some(step)) => *until <= step.recording_time(as_of),
            _ => entry.position.time() <= as_of,
        }
    }

    /// Returns the greatest time that the clock of Redis may have shown when this entry was written.
    pub fn latest_redis_time(&self, entry: &Entry) -> Micros {
        let times = self.ahead.get(&entry.position);
        times.map_or(entry.position.time(), |[_, until]| self.history.redis_time(*until)[1])
    }
}

/// Returns the times between which the entries after the step were written, according to the positions that watchers
/// received: an entry at or before a position was written before its response, and an entry after the position of a
/// bookmark was written after its `as_of`.
fn after_set_back(history: &History, step: &ClockStep) -> HashMap<Position, [Micros; 2]> {
    let store = history.truth.present();
    let responses = || history.watches.iter().flat_map(|watch| &watch.responses);
    let mut times = HashMap::new();
    for (partition, (log, end)) in store.logs.iter().zip(&step.ends).enumerate() {
        let (mut written_by, mut missing_at) = (Vec::new(), Vec::new());
        for response in responses().filter(|response| response.at >= step.from && response.token.store == store.id) {
            let revision = response.token.positions[partition].revision;
            written_by.push((revision, response.at));
            if let Some(Control::Bookmark(as_of)) = response.control {
                missing_at.push((revision, step.recording_time(as_of)));
            }
        }
        written_by.sort_unstable();
        missing_at.sort_unstable();
        // Of all later positions the first response counts, of all earlier ones the last bookmark.
        for at in (1..written_by.len()).rev() {
            written_by[at - 1].1 = written_by[at - 1].1.min(written_by[at].1);
        }
        for at in 1..missing_at.len() {
            missing_at[at].1 = missing_at[at].1.max(missing_at[at - 1].1);
        }
        for entry in log.entries.iter().filter(|entry| entry.position.revision > end.revision) {
            let revision = entry.position.revision;
            let later = written_by.partition_point(|(other, _)| *other < revision);
            let earlier = missing_at.partition_point(|(other, _)| *other < revision);
            let until = written_by.get(later).map_or(history.ended, |(_, at)| *at);
            let from = earlier.checked_sub(1).map_or(step.from, |last| missing_at[last].1.max(step.from));
            times.insert(entry.position, [from.min(until), until]);
        }
    }
    times
}
