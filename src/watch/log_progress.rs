//! Progress of a watcher that reads the log.

use super::resume_token::ResumeToken;
use crate::store::{Partition, Position};

/// Progress of a watcher that reads the log.
pub(super) struct CatchUp {
    /// Positions up to which the watcher has read the logs.
    pub reached: ResumeToken,
    /// Positions up to which it reads the logs; after them it continues in the ring.
    pub target: ResumeToken,
    /// Index of the partition that is read now. The partitions before it are at their target.
    pub partition: usize,
    /// Why the watcher is behind the ring.
    pub reason: CatchUpReason,
}

/// Why the watcher is behind the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CatchUpReason {
    /// It was opened with a resume token.
    Resumed,
    /// The ring dropped slots that it had not taken.
    Overrun,
}

impl CatchUp {
    /// Catch-up of a watch that was opened with a resume token.
    pub(super) fn resumed(reached: ResumeToken, target: ResumeToken) -> Self {
        CatchUp { reached, target, partition: 0, reason: CatchUpReason::Resumed }
    }

    /// Catch-up of a live watcher after the ring dropped slots that it had not taken.
    pub(super) fn overrun(reached: ResumeToken, target: ResumeToken) -> Self {
        CatchUp { reached, target, partition: 0, reason: CatchUpReason::Overrun }
    }

    /// The partition that is read now, its position, and its target. None: every partition is at its target.
    pub(super) fn current(&self) -> Option<(Partition, Position, Position)> {
        let reached = self.reached.positions.get(self.partition)?;
        let target = self.target.positions.get(self.partition)?;
        Some((Partition(u16::try_from(self.partition).ok()?), *reached, *target))
    }
}
